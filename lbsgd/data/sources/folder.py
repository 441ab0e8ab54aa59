"""Image files on the disk, in a folder for each class."""

import collections
import functools
import os
import pathlib
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_collections
import numpy as np

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.packed.reader import is_packed
from lbsgd.data.source import Example, Splits, first_image_shape, list_names
from lbsgd.data.sources.files import (
    EXTENSIONS,
    SPLIT_FOLDERS,
    File,
    Files,
    is_left_out,
    kind_left_out,
)
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import expand_home
from lbsgd.system.text import printable

# Largest size of an image file; 100 million pixels take less.
MOST_BYTES = 10**9
# Threads that list folders: asking a network disk for the sizes of a million files one after the
# other takes an hour.
SCANNERS = 32


class FolderSource:
    """A folder with a folder of images for each class.

    The classes are the names of the folders, sorted. Images may be in folders further below; hidden
    files are ignored. A file is read only when its example is.

    Args:
      classes: class names by label, if they are not those of this folder.
      whose: what they are of, for messages.

    Raises:
      ConfigError: there are no classes, one has no images, or one is not in `classes`.
    """

    def __init__(
        self,
        root: pathlib.Path,
        classes: tuple[str, ...] = (),
        whose: str = "the training split",
    ) -> None:
        self._root = os.path.abspath(root)
        try:
            left_out = collections.Counter(_left_out_beside(root))
            names = _folders(root)
            counts = [collections.Counter[str]() for _ in names]
            with ThreadPoolExecutor(SCANNERS, "lbsgd-scan") as pool:
                scan = functools.partial(_scan, self._root)
                found = list(pool.map(scan, names, counts))
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename} ({error.strerror})") from error
        left_out = sum(counts, left_out)
        self._files = Files(dict(zip(names, found)), classes, root, left_out, whose)
        self.classes, self.fingerprint = self._files.classes, self._files.fingerprint
        self.notes, self.labels = self._files.notes, self._files.labels
        self.image_shape = first_image_shape(self)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        content = read_file(f"{self._root}/{self._files.path(index)}")
        return Example(content, int(self._files.labels[index]))

    def name(self, index: int) -> str:
        return printable(f"{os.path.basename(self._root)}/{self._files.path(index)}")

    def key(self, index: int) -> bytes:
        """Returns the path of an example relative to the folder, in bytes."""
        return os.fsencode(self._files.path(index))

    def check_sizes(self) -> None:
        """Raises ConfigError if files are empty, too large, or broken links.

        No file is opened: the sizes are those of the scan.
        """
        sizes = self._files.sizes
        wrong = np.flatnonzero((sizes <= 0) | (sizes > MOST_BYTES))
        if not wrong.size:
            return
        first = int(wrong[0])
        reason = {0: "is empty", -1: "cannot be read"}.get(int(sizes[first]), "is too large")
        others = f" (one of {wrong.size:,} such files)" if wrong.size > 1 else ""
        raise ConfigError(
            f"{self.name(first)} is corrupt: it {reason}{others}; mend or remove it, or set "
            "data.on_corrupt='skip'"
        )


def _entries(folder: str | pathlib.Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return list(entries)


def _folders(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Returns whether an entry is a folder of images; a packed set among them is not."""
    if not entry.is_dir() or is_left_out(entry.name):
        return False
    try:
        return not is_packed(pathlib.Path(entry))
    except OSError:  # reading its contents will raise the error
        return True


def _left_out_beside(root: pathlib.Path) -> Iterator[str]:
    """Yields the kinds of files and folders beside the folders of the classes."""
    for entry in _entries(root):
        if entry.is_dir() and not is_left_out(entry.name):  # a class, or a packed set
            continue
        if not is_left_out(entry.name) and entry.name.lower().endswith(EXTENSIONS):
            yield "images in no folder of a class"
        else:
            yield kind_left_out(entry.name, entry.is_dir())


def read_file(path: str) -> bytes:
    """Reads an image file, which may be anything.

    Raises:
      CorruptError: it cannot be read, is no file, or has no end.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_nonblocking) as file:
            _check_size(os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise CorruptError(f"cannot be read ({error.strerror})") from error


def _open_nonblocking(path: str, flags: int) -> int:
    """Opens a file; does not wait for a writer if it is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_size(status: os.stat_result) -> None:
    """Raises CorruptError for a pipe, a device or a huge file, which may have no end."""
    if not stat.S_ISREG(status.st_mode):
        raise CorruptError("is not a regular file")
    if status.st_size > MOST_BYTES:
        raise CorruptError(f"has {status.st_size:,} bytes, more than {MOST_BYTES:,}")


def _scan(root: str, below: str, left_out: "collections.Counter[str]") -> list[File]:
    """Lists the images in a folder below `root`; counts other files in `left_out`."""
    return list(_images(root, below, left_out))


def _images(
    root: str,
    below: str,
    left_out: "collections.Counter[str]",
    around: tuple[os.stat_result, ...] = (),
) -> Iterator[File]:
    """Yields the images in a folder and the folders below it; links are followed.

    Args:
      below: the folder, relative to `root`.
      left_out: counts files that are not images.
      around: the folders around this one.
    """
    here = os.stat(f"{root}/{below}")
    if any(os.path.samestat(here, folder) for folder in around):
        raise ConfigError(f"{root}/{below} links back to a folder around it; remove the link")
    for entry in _entries(f"{root}/{below}"):
        path = f"{below}/{entry.name}"
        if is_left_out(entry.name):
            left_out[kind_left_out(entry.name, entry.is_dir())] += 1
        elif entry.is_dir():
            if _is_folder(entry):
                yield from _images(root, path, left_out, (*around, here))
        elif not path.lower().endswith(EXTENSIONS):
            left_out[kind_left_out(entry.name)] += 1
        else:
            yield File(path, _size(entry))


def _size(entry: "os.DirEntry[str]") -> int:
    """Returns the size of a file; -1 for a broken link, and for what is not a regular file."""
    try:
        status = entry.stat()
    except OSError:  # reading it will raise the error
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Finds the folders of "train" and "validation" below `root` that have folders of classes.

    Raises:
      ConfigError: `root` cannot be read.
    """
    try:
        there = set(_folders(root))
        found: dict[str, pathlib.Path] = {}
        for split, names in SPLIT_FOLDERS.items():
            for name in names:
                if name in there and _folders(root / name):
                    found.setdefault(split, root / name)
        return found
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename} ({error.strerror})") from error


def folder_splits(
    root: pathlib.Path, alone: str = "train", classes: tuple[str, ...] = ()
) -> dict[str, FolderSource]:
    """Opens the splits "train" and "validation" that exist below `root`.

    Args:
      alone: the split to use for a folder that has `CLASS/` only.
      classes: of the validation split if the training split is elsewhere; () for those in its
        folder.

    Raises:
      ConfigError: there are no such folders, or as in `FolderSource`.
    """
    found: dict[str, FolderSource] = {}
    for split, below in (split_folders(root) or {alone: root}).items():
        known = found["train"].classes if found else classes
        found[split] = FolderSource(below, () if split == "train" else known)
    return found


def folder(config: ml_collections.ConfigDict) -> Splits:
    """Opens images in `train/CLASS/` and `val/CLASS/` (or `validation/`, or `test/`) of data.dir.

    The labels of both follow the classes of `train/`.
    """
    root = data_folder(config)
    found = split_folders(root)
    for split, names in SPLIT_FOLDERS.items():
        if split not in found:
            raise ConfigError(
                f"data.dir={config.dir!r} has no {'/, '.join(names)}/ with a folder of images for "
                f"each class{_hint(root)}"
            )
    splits = folder_splits(root)
    if config.on_corrupt == "error":
        for source in splits.values():
            source.check_sizes()
    return Splits(**splits)


def data_folder(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Finds the folder that data.dir names.

    Raises:
      ConfigError: there is none, or it is a packed set.
    """
    root = expand_home(config.dir)
    if not config.dir or not os.path.isdir(root):
        raise ConfigError(
            f"data.dir={config.dir!r} is not a folder; set --config.data.dir=DIR to one of train/ "
            "and val/ with a folder of images for each class"
        )
    if (root / "train" / "index.json").exists():
        raise ConfigError(f"data.dir={config.dir!r} is a prepared set; set data.source='packed'")
    return root


def whole_folder(config: ml_collections.ConfigDict) -> FolderSource:
    """Opens images in `CLASS/` or `train/CLASS/` of data.dir, to hold out a part of them.

    Raises:
      ConfigError: as in `folder`, or there is a folder of validation images too.
    """
    root = data_folder(config)
    found = split_folders(root)
    if "validation" in found:
        raise ConfigError(
            f"data.validation_fraction={config.validation_fraction}, but {found['validation']} is "
            f"there; set it to 0, or data.dir to the folder to hold out of"
        )
    source = FolderSource(found.get("train", root))
    if config.on_corrupt == "error":
        source.check_sizes()
    return source


def _hint(root: pathlib.Path) -> str:
    """Returns a hint for a folder without splits: where they are, or what the folder contains."""
    folders = _folders(root)
    near = [root / name for name in folders] + [root.parent]
    for folder in near:
        if len(split_folders(folder)) == len(SPLIT_FOLDERS):
            return f"; set data.dir={printable(str(folder))}"
    if not folders:
        return "; it has no folders"
    there = list_names(f"{name}/" for name in folders)
    return f", only {there}; data.validation_fraction=0.1 holds out a part of one folder"
