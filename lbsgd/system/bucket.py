"""Paths of objects in buckets, with as much of pathlib's interface as lbsgd uses.

A bucket has objects, no folders: a folder is there as long as an object is below it. An object is
written whole or not at all, and cannot be appended to. What fails is an OSError, as on a disk.
"""

import contextlib
import errno
import functools
import importlib.util
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import one_line, short_repr

# By the beginning of a path: the module that fsspec needs for it, and what pip installs that with.
SCHEMES = {
    "gs": ("gcsfs", "pip install 'lbsgd[gs]'"),
    "s3": ("s3fs", "pip install 'lbsgd[s3]'"),
    "memory": ("fsspec", "pip install fsspec"),  # of this process, for tests
}
LIKE_BUCKET = re.compile("([A-Za-z][A-Za-z0-9+.-]*):/")
# What fsspec takes for a pattern, a version of an object or a chain of file systems.
_ODD = re.compile(r"[][*?#\x00-\x1f\ud800-\udfff]|::|/\.{1,2}(/|$)")


class Status(NamedTuple):
    """Holds what is known of an object, as `pathlib.Path.stat` names it."""

    st_size: int


class BucketPath:
    """Names an object, or all objects below it, as in "gs://bucket/runs/x".

    Raises:
      ConfigError: it is no such name, or what reads it is not installed.
    """

    def __init__(self, uri: str) -> None:
        match = LIKE_BUCKET.match(uri)
        scheme = match[1] if match else ""
        if scheme not in SCHEMES:
            raise ConfigError(
                f"{uri}: of buckets gs:// and s3:// are known, others must be mounted as folders; "
                "a folder whose name begins like this is written ./"
            )
        if not re.match(f"{scheme}://[^/]", uri):
            raise ConfigError(f"{uri} names no bucket; write {scheme}://BUCKET/FOLDER")
        if _ODD.search(uri):
            raise ConfigError(
                f"{short_repr(uri)}: the name of what lies in a bucket may not hold one of "
                "[ ] * ? #, '::' or '..'; choose another"
            )
        module, install = SCHEMES[scheme]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{uri} is read by {module}, which is not installed; {install}")
        bucket, *names = (part for part in uri[len(scheme) + 3 :].split("/") if part)
        self._scheme, self._parts = scheme, (bucket, *names)

    def __str__(self) -> str:
        return f"{self._scheme}://{'/'.join(self._parts)}"

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> "BucketPath":
        return BucketPath(f"{self}/{name}")

    # --- names, as pathlib has them ---

    @property
    def name(self) -> str:
        """Returns the last part of the path."""
        return self._parts[-1]

    @property
    def parent(self) -> "BucketPath":
        """Returns the path without its last part; a bucket is its own parent."""
        return BucketPath(f"{self._scheme}://{'/'.join(self._parts[:-1] or self._parts)}")

    def absolute(self) -> "BucketPath":
        """Returns the path itself, which is always absolute."""
        return self

    # --- what is there ---

    def is_file(self) -> bool:
        """Tells whether there is an object of this name."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Tells whether there are objects below it."""
        return next(self.iterdir(), None) is not None

    def exists(self) -> bool:
        """Tells whether it is an object, or there are some below it."""
        return self.is_file() or self.is_dir()

    def stat(self) -> Status:
        """Returns the size of the object in bytes.

        Raises:
          FileNotFoundError: there is none.
        """
        with self._errors():
            info = self._fs.info(self._key)
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return Status(info["size"])

    def iterdir(self) -> Iterator["BucketPath"]:
        """Lists what is directly below it; nothing where nothing is."""
        try:
            with self._errors():
                found = self._fs.ls(self._key, detail=False)
        except FileNotFoundError:
            found = []
        names = {name.strip("/").rpartition("/") for name in found}
        # An object may have the name of a folder itself, as consoles make them.
        below = sorted(name for folder, _, name in names if folder == "/".join(self._parts))
        return (self / name for name in below)

    def sizes(self) -> dict[str, int]:
        """Lists the sizes of all objects below it in bytes, by their names relative to it."""
        with self._errors():
            found = self._fs.find(self._key, detail=True)
        below = "/".join(self._parts) + "/"
        names = {name.lstrip("/"): info["size"] for name, info in found.items()}
        return {n.removeprefix(below): size for n, size in names.items() if n.startswith(below)}

    # --- objects ---

    def read_bytes(self) -> bytes:
        """Reads the object."""
        with self._errors():
            return self._fs.cat_file(self._key)

    def read_text(self) -> str:
        """Reads the object as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Replaces the object: whoever reads it finds the old one or the new one, whole."""
        with self._errors():
            self._fs.pipe_file(self._key, data)

    def create(self, data: bytes) -> bool:
        """Writes the object if there is none of this name, which the bucket decides.

        Args:
          data: that nobody else writes, so that it is known whose the object is.

        Returns:
          Whether it is the one that was written here.
        """
        try:
            with self._errors():
                self._fs.pipe_file(self._key, data, mode="create")
        except OSError as error:  # each library has its own where an object is there already
            # If it is this one, then it was written and the answer was lost.
            try:
                return self.read_bytes() == data
            except FileNotFoundError:
                raise error from None
        return True

    def download(self, file: pathlib.Path) -> None:
        """Copies the object to a file on the disk."""
        with self._errors():
            self._fs.get_file(self._key, str(file))

    def upload(self, file: pathlib.Path) -> None:
        """Replaces the object by a file on the disk, which fits into memory."""
        self.write_bytes(file.read_bytes())

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object.

        Args:
          missing_ok: whether there may be none, of which S3 does not tell.
        """
        with contextlib.suppress(*[FileNotFoundError] * missing_ok), self._errors():
            self._fs.rm_file(self._key)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing, for buckets have no folders."""

    @property
    def _key(self) -> str:
        return "/".join(self._parts)

    @property
    def _fs(self) -> Any:
        return _file_system(self._scheme)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Makes an OSError of what fsspec raises, with a reason of one line."""
        try:
            yield
        except OSError as error:
            number = error.errno or _NUMBERS.get(type(error), errno.EIO)
            reason = one_line(error.strerror or str(error))
            # Some say no more than the name.
            text = reason if " " in reason else os.strerror(number)
            raise OSError(number, text, str(self)) from error
        except Exception as error:  # of the libraries below it
            reason = f"{type(error).__name__}: {one_line(str(error))}".rstrip(": ")
            raise OSError(errno.EIO, reason, str(self)) from error


_NUMBERS: dict[type[OSError], int] = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
    TimeoutError: errno.ETIMEDOUT,
}


@functools.cache
def _file_system(scheme: str) -> Any:
    """Opens what reads a kind of buckets; several threads may use it at the same time."""
    import fsspec

    # It says on stderr, with a traceback, what it also raises.
    logging.getLogger(SCHEMES[scheme][0]).setLevel(logging.CRITICAL)
    # Others write there too: what it listed before does not count.
    return fsspec.filesystem(scheme, use_listings_cache=False)
