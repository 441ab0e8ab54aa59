"""Image files in a folder for each class, as they are or in a tar."""

import hashlib
import itertools
import json
import os
import pathlib
import posixpath
import shlex
import stat
import tarfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import ml_collections
import numpy as np

from lbsgd.bounds import shown
from lbsgd.data.decode import CorruptError
from lbsgd.data.sources import Example, Splits, first_shape
from lbsgd.errors import ConfigError
from lbsgd.paths import at_home

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# By the name of the split, the folders that may hold it; the first that is there does.
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "test")}
# Of an image file; 100 million pixels are less.
MOST_BYTES = 10**9
# Asking a network disk for the sizes of a million files one after the other takes an hour.
SCANNERS = 32
COMPRESSED = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


class File(NamedTuple):
    """An image file.

    Attributes:
      path: below the folder of the split, with "/"; the first part is the class.
      size: in bytes; -1 for a link that leads nowhere.
      start: where its bytes start in the tar; 0 elsewhere.
    """

    path: str
    size: int
    start: int = 0


class Files:
    """Image files by class, in the order of torchvision's ImageFolder, in little memory.

    Args:
      found: the files of each folder of a class, by its name.
      classes: by label; () for the names of the folders, sorted.
      where: they lie, for messages.

    Attributes:
      labels, starts, sizes: `[N]`.
      fingerprint: of classes, paths and sizes.

    Raises:
      ConfigError: no classes, one without images, or one that is not in `classes`.
    """

    def __init__(
        self, found: dict[str, list[File]], classes: tuple[str, ...], where: pathlib.Path
    ) -> None:
        names = sorted(found)
        if not names:
            raise ConfigError(f"{where} has no folder of images for each class")
        self.classes = classes or tuple(names)
        label_of = {name: label for label, name in enumerate(self.classes)}
        for name in names:
            if not found[name]:
                raise ConfigError(
                    f"{where}: class {name!r} has no images ({' '.join(EXTENSIONS)}); add some or "
                    "remove its folder"
                )
            if name not in label_of:
                raise ConfigError(f"{where} has a class {name!r}, which the training split has not")
        files = [file for name in names for file in sorted(found[name], key=_folder_and_name)]
        labels = [label_of[name] for name in names for _ in found[name]]
        self.labels = np.array(labels, np.int32)
        # Bytes of one width take a third of the memory of Python's strings.
        self._paths = np.array([os.fsencode(file.path) for file in files], np.bytes_)
        self.sizes = np.array([file.size for file in files], np.int64)
        self.starts = np.array([file.start for file in files], np.int64)
        digest = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=16)
        for array in (self._paths, self.sizes):
            digest.update(array.data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The path of a file below the folder of the split."""
        return os.fsdecode(bytes(self._paths[index]))


def printable(path: str) -> str:
    """The path with marks in place of what no terminal should be sent, which a name may have."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _folder_and_name(file: File) -> list[str]:
    return file.path.rsplit("/", 1)


class FolderSource:
    """A folder with a folder of images (JPEG, PNG, BMP, WebP) for each class.

    The classes are the names of the folders, sorted; images may lie in folders further below;
    hidden files do not count. The files are not read before they are asked for.

    Args:
      classes: by label, where they are not to be those of this folder.

    Raises:
      ConfigError: no classes, one without images, or one that is not in `classes`.
    """

    def __init__(self, root: pathlib.Path, classes: tuple[str, ...] = ()) -> None:
        self._root = os.path.abspath(root)
        try:
            names = _folders(root)
            with ThreadPoolExecutor(SCANNERS, "lbsgd-scan") as pool:
                found = list(pool.map(lambda name: list(_images(self._root, name)), names))
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename} ({error.strerror})") from error
        self._files = Files(dict(zip(names, found)), classes, root)
        self.classes, self.fingerprint = self._files.classes, self._files.fingerprint
        self.image_shape = first_shape(self)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path = f"{self._root}/{self._files.path(index)}"
        try:
            with open(path, "rb", buffering=0, opener=_open_at_once) as file:
                _check_size(os.fstat(file.fileno()))
                return Example(file.read(), int(self._files.labels[index]))
        except OSError as error:
            raise CorruptError(f"cannot be read ({error.strerror})") from error

    def name(self, index: int) -> str:
        return printable(f"{os.path.basename(self._root)}/{self._files.path(index)}")


def _visible(folder: str | pathlib.Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _folders(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def _open_at_once(path: str, flags: int) -> int:
    """Opens a pipe too without waiting for who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_size(status: os.stat_result) -> None:
    """Raises CorruptError for what could not be read to its end: a pipe, a device, a huge file."""
    if not stat.S_ISREG(status.st_mode):
        raise CorruptError("is no regular file")
    if status.st_size > MOST_BYTES:
        raise CorruptError(f"has {status.st_size:,} bytes, more than {MOST_BYTES:,}")


def _images(root: str, below: str, around: tuple[os.stat_result, ...] = ()) -> Iterator[File]:
    """The images in a folder below `root` and further below; links are followed.

    Args:
      around: the folders that it lies in.
    """
    here = os.stat(f"{root}/{below}")
    if any(os.path.samestat(here, folder) for folder in around):
        raise ConfigError(f"{root}/{below} leads back to a folder that it lies in; remove the link")
    for entry in _visible(f"{root}/{below}"):
        path = f"{below}/{entry.name}"
        if entry.is_dir():
            yield from _images(root, path, (*around, here))
        elif path.lower().endswith(EXTENSIONS):
            try:
                yield File(path, entry.stat().st_size)
            except OSError:  # reading it will say what is wrong
                yield File(path, -1)


def split_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of "train" and "validation" below `root` that have folders for classes.

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
    """The "train" and "validation" below `root`, those there are.

    Args:
      alone: the split that a folder of `CLASS/` is.
      classes: of the validation where the training split is elsewhere; () for those in its folder.

    Raises:
      ConfigError: there are no such folders, or as `FolderSource` does.
    """
    found: dict[str, FolderSource] = {}
    for split, below in (split_folders(root) or {alone: root}).items():
        known = found["train"].classes if found else classes
        found[split] = FolderSource(below, () if split == "train" else known)
    return found


def folder(config: ml_collections.ConfigDict) -> Splits:
    """Images in `train/CLASS/` and `val/CLASS/` (or `validation/`, or `test/`) of data.dir.

    The labels of both follow the classes of `train/`.
    """
    root = at_home(config.dir)
    if not config.dir or not os.path.isdir(root):
        raise ConfigError(f"data.dir={config.dir!r} is no folder; it must hold train/ and val/")
    if (root / "train" / "index.json").exists():
        raise ConfigError(f"data.dir={config.dir!r} is a prepared set; set data.source='packed'")
    found = split_folders(root)
    for split, names in SPLIT_FOLDERS.items():
        if split not in found:
            raise ConfigError(
                f"data.dir={config.dir!r} has no {'/, '.join(names)}/ with a folder of images for "
                "each class"
            )
    return Splits(**folder_splits(root))


class TarSource:
    """Image files in an uncompressed tar, read where they lie in it.

    Args:
      files: all those of the tar, with their whole paths.
      below: the folder in the tar with the folders of the classes; "" or with "/" at its end.
      classes: by label, where they are not to be those in the tar.

    Raises:
      ConfigError: no classes, or one that is not in `classes`.
    """

    def __init__(
        self, path: pathlib.Path, files: list[File], below: str, classes: tuple[str, ...] = ()
    ) -> None:
        found: dict[str, list[File]] = {}
        for file in files:
            name, slash, _ = file.path.removeprefix(below).partition("/")
            if slash and file.path.startswith(below):
                found.setdefault(name, []).append(file._replace(path=file.path.removeprefix(below)))
        self._files, self._below = Files(found, classes, path), below
        self.classes, self.fingerprint = self._files.classes, self._files.fingerprint
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.image_shape = first_shape(self)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        start, size = int(self._files.starts[index]), int(self._files.sizes[index])
        try:
            data = os.pread(self._descriptor, size, start)  # moves no pointer that threads share
        except OSError as error:
            raise CorruptError(f"cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise CorruptError("the tar has been cut short")
        return Example(data, int(self._files.labels[index]))

    def name(self, index: int) -> str:
        return printable(self._below + self._files.path(index))


def tar_splits(
    path: pathlib.Path, alone: str = "train", classes: tuple[str, ...] = ()
) -> dict[str, TarSource]:
    """The "train" and "validation" of a tar of `train/CLASS/` and `val/CLASS/`, those there are.

    Folders around all of it do not count.

    Args:
      alone: the split that a tar of `CLASS/` is.
      classes: of the validation where the training split is elsewhere; () for those in the tar.

    Raises:
      ConfigError: it cannot be read, is compressed, or holds no such folders.
    """
    files = _read_tar(path)
    around = _around(files)
    inside = (file.path.removeprefix(around).split("/") for file in files)
    tops = {parts[0] for parts in inside if len(parts) > 2}
    named = {
        split: next((f"{around}{name}/" for name in names if name in tops), "")
        for split, names in SPLIT_FOLDERS.items()
    }
    folders = {split: below for split, below in named.items() if below} or {alone: around}
    found: dict[str, TarSource] = {}
    for split, below in folders.items():
        known = found["train"].classes if found else classes
        found[split] = TarSource(path, files, below, () if split == "train" else known)
    return found


def _around(files: list[File]) -> str:
    """The folders around all of the files that are neither a split nor a class."""
    folders = [file.path.split("/")[:-2] for file in files]
    splits = set(itertools.chain(*SPLIT_FOLDERS.values()))
    around = ""
    for first, last in zip(min(folders), max(folders)):
        if first != last or first in splits:
            break
        around += f"{first}/"
    return around


def _read_tar(path: pathlib.Path) -> list[File]:
    """The image files of a tar that are in a folder, and where their bytes are."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            for magic, command in COMPRESSED.items():
                if start.startswith(magic):
                    raise ConfigError(
                        f"{path} is compressed; it can be read at random after: "
                        f"{command} {shlex.quote(str(path))}"
                    )
        with tarfile.open(path, "r:") as tar:
            found = {file.path: file for file in _members(tar, path)}  # of two, the later one
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror or error})") from error
    except tarfile.TarError as error:
        raise ConfigError(f"{path} is no tar, or damaged ({error})") from error
    except ConfigError:
        raise
    except Exception as error:  # of damaged headers tarfile lets many kinds through
        raise ConfigError(f"{path} is no tar, or damaged ({shown(error)})") from error
    if not found:
        raise ConfigError(f"{path} has no folder of images for each class")
    return list(found.values())


def _members(tar: tarfile.TarFile, path: pathlib.Path) -> Iterator[File]:
    end = 0
    while (member := tar.next()) is not None:
        if member.size < 0 or member.offset < end:  # some versions of tarfile never get past these
            raise tarfile.ReadError("a member starts within another")
        end = member.offset_data + member.size
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep 1 kB each
        name = posixpath.normpath(member.name).lstrip("/")
        parts = name.split("/")
        if len(parts) < 2 or any(part.startswith(".") for part in parts):
            continue
        if member.isdir() or not name.lower().endswith(EXTENSIONS):
            continue
        if not member.isreg() or member.issparse():
            raise ConfigError(
                f"{path}: {printable(name)} is a link, a device or sparse; unpack the tar and use "
                "the folder"
            )
        if member.size > MOST_BYTES:
            raise ConfigError(f"{path}: {printable(name)} has {member.size:,} bytes; leave it out")
        yield File(name, member.size, member.offset_data)
