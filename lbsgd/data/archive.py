"""Image files in a folder for each class, in a tar: read where they lie in it."""

import itertools
import os
import pathlib
import posixpath
import shlex
import tarfile
import weakref
from collections.abc import Iterator

from lbsgd.bounds import shown
from lbsgd.data.decode import CorruptError
from lbsgd.data.files import EXTENSIONS, File, Files, printable
from lbsgd.data.folder import MOST_BYTES, SPLIT_FOLDERS
from lbsgd.data.sources import Example, first_shape
from lbsgd.errors import ConfigError

COMPRESSED = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


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
        self.notes = self._files.notes
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
