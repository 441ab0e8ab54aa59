"""Brings checkpoints to and from where they are kept: a folder on a disk, or a bucket.

Orbax is given folders on a disk only. A checkpoint in a bucket is written to a temporary folder;
then its files are uploaded, the manifest last, for an upload without one is no checkpoint. To be
read it is downloaded again, so what is verified is what the bucket gives back.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from lbsgd.checkpoint.manifest import DamagedError
from lbsgd.system.bucket import BucketPath
from lbsgd.system.files import AnyPath

# Orbax's mark in the name of a folder that is not complete, or is being removed.
TEMPORARY = ".orbax-checkpoint-tmp"
MANIFEST = "manifest/metadata"
# How many files are under way at a time.
TRANSFERS = 8


def is_complete(path: AnyPath) -> bool:
    """Tells whether what has the name of a checkpoint is one, good or not."""
    return isinstance(path, pathlib.Path) or (path / MANIFEST).is_file()


@contextlib.contextmanager
def staged(path: AnyPath, nbytes: int) -> Iterator[pathlib.Path]:
    """Yields where to write a checkpoint of so many bytes; after that it is at `path`, synced.

    Raises:
      OSError: there is no room for it, or it cannot be brought there.
    """
    if isinstance(path, pathlib.Path):
        _check_room(path.parent, nbytes)
        yield path
        _sync_to_disk(path)
        return
    with _temporary_folder(nbytes) as folder:
        yield folder / path.name
        _upload(folder / path.name, path)


@contextlib.contextmanager
def fetched(path: AnyPath, files: Collection[str], nbytes: int) -> Iterator[pathlib.Path]:
    """Yields where a checkpoint can be read.

    Args:
      files: those that are needed, by their names within it.
      nbytes: their size in bytes.

    Raises:
      OSError: they cannot be brought to the disk.
    """
    if isinstance(path, pathlib.Path):
        yield path
        return
    with _temporary_folder(nbytes) as folder:
        local = folder / path.name
        there = {name: path / name for name in files}  # refuses names that lead out of the folder
        for name in files:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
        _all(files, lambda name: there[name].download(local / name))
        yield local


def sizes(path: AnyPath) -> dict[str, int]:
    """Lists the sizes of the files of a checkpoint in bytes.

    Raises:
      DamagedError: a file is not a plain one, so that reading might never end.
      OSError: the files cannot be listed.
    """
    if isinstance(path, BucketPath):
        return path.sizes()
    if path.is_symlink() or not path.is_dir():
        raise DamagedError("it is not a folder")
    return dict(_walk(path, ""))


def remove(path: AnyPath) -> None:
    """Removes a checkpoint, or the remains of one, atomically: no part of it is taken for a whole.

    Raises:
      OSError: it could not be removed.
    """
    if isinstance(path, BucketPath):
        (path / MANIFEST).unlink(missing_ok=True)
        _all(path.sizes(), lambda name: (path / name).unlink(missing_ok=True))
        return
    if TEMPORARY not in path.name:
        doomed = path.with_name(f"{path.name}{TEMPORARY}-removed")
        if os.path.lexists(doomed):
            remove(doomed)
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
        path = doomed
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _upload(local: pathlib.Path, path: BucketPath) -> None:
    files = [name for name, _ in _walk(local, "") if name != MANIFEST]
    _all(files, lambda name: (path / name).upload(local / name))
    (path / MANIFEST).upload(local / MANIFEST)


def _all(names: Collection[str], action: Callable[[str], None]) -> None:
    """Does something for all names, a few at a time.

    Raises:
      Exception: the first that comes up.
    """
    with ThreadPoolExecutor(TRANSFERS, "lbsgd-transfer") as pool:
        for _ in pool.map(action, names):
            pass


@contextlib.contextmanager
def _temporary_folder(nbytes: int) -> Iterator[pathlib.Path]:
    """Makes a folder with room for so many bytes, and removes it."""
    with tempfile.TemporaryDirectory(prefix="lbsgd-") as name:
        folder = pathlib.Path(name).resolve()
        _check_room(folder, nbytes)
        yield folder


def _walk(path: pathlib.Path, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(path) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from _walk(path / entry.name, f"{prefix}{entry.name}/")
            elif stat.S_ISREG(status.st_mode):
                yield prefix + entry.name, status.st_size
            else:
                raise DamagedError(f"{prefix}{entry.name} is not a plain file")


def _check_room(folder: pathlib.Path, nbytes: int) -> None:
    """Checks that a checkpoint fits on the disk.

    Orbax would create a missing folder, and write much before it notices that the disk is full.

    Raises:
      OSError: the folder is gone, or has no room for so many bytes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"{folder} is not there any more")
    usage = shutil.disk_usage(folder)
    if usage.total > 0 and usage.free < nbytes:
        text = f"No space left on device: {nbytes:,} bytes needed, {usage.free:,} free"
        raise OSError(errno.ENOSPC, text)


def _sync_to_disk(path: pathlib.Path) -> None:
    """Syncs files and folders to the disk, and drops their cache, so that the disk is read back."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _sync(os.path.join(folder, name))
        with contextlib.suppress(OSError):  # not every file system can sync a folder
            _sync(folder)
    with contextlib.suppress(OSError):
        _sync(str(path.parent))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
