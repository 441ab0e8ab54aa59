"""Copies of shards that lie in a bucket, on the disk of this machine.

A shard is downloaded when its first example is read, checked against the SHA-256 in the index, and
kept under that name for all processes and later runs, in `~/.cache/lbsgd/shards` (`XDG_CACHE_HOME`
counts).
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Protocol

from lbsgd.data.images.decode import CorruptError
from lbsgd.system.bucket import BucketPath
from lbsgd.system.cache import cache_folder
from lbsgd.system.files import file_checksum


class Listed(Protocol):
    """A shard as the index lists it."""

    @property
    def bytes(self) -> int:
        """The size of its file."""

    @property
    def sha256(self) -> str:
        """The checksum of its file."""


class CachedShard:
    """A shard in a bucket; called, it says where its copy on the disk is."""

    def __init__(self, path: BucketPath, shard: Listed) -> None:
        self._path, self._shard = path, shard
        self._damage: CorruptError | None = None

    def __call__(self) -> pathlib.Path:
        """Downloads the shard, unless that was done before.

        Raises:
          CorruptError: it is not what the index says; that is found out once.
          OSError: it cannot be downloaded, or there is no room for it.
        """
        if self._damage:
            raise self._damage
        copy = _folder() / f"{self._shard.sha256}.array_record"
        if not self._is_whole(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _alone(copy.with_suffix(".lock")):
                if not self._is_whole(copy):  # another process may have brought it
                    self._download(copy)
        return copy

    def _is_whole(self, copy: pathlib.Path) -> bool:
        return copy.is_file() and copy.stat().st_size == self._shard.bytes

    def _download(self, copy: pathlib.Path) -> None:
        free = shutil.disk_usage(copy.parent).free
        if free < self._shard.bytes:
            text = f"{self._shard.bytes:,} bytes needed in {copy.parent}, {free:,} free"
            raise OSError(errno.ENOSPC, text)
        partial = copy.with_suffix(".part")
        try:
            self._path.download(partial)
            if file_checksum(partial) != self._shard.sha256:
                self._damage = CorruptError(f"{self._path.name} has another checksum")
                raise self._damage
            os.replace(partial, copy)
        finally:
            partial.unlink(missing_ok=True)


def _folder() -> pathlib.Path:
    cache = cache_folder()
    if not cache:
        raise OSError(errno.ENOENT, "shards are kept in the home; set HOME or XDG_CACHE_HOME")
    return cache / "shards"


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process or thread is in here with the same file."""
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks: each downloads it
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
