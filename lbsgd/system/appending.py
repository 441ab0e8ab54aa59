"""Files that grow while a run goes on, on disks and in buckets.

A file on a disk is appended to. An object in a bucket cannot be: it is rewritten whole from a copy
on the local disk, when `sync` is called, and by a thread every `REWRITE_SECONDS` if it changed.
"""

import contextlib
import errno
import os
import pathlib
import tempfile
import threading
from typing import Protocol

from lbsgd.system.bucket import BucketPath
from lbsgd.system.files import AnyPath

# How old an object may be, while its file grows.
REWRITE_SECONDS = 60.0


class AppendedFile(Protocol):
    """A file that is open for appending.

    Attributes:
      local: where it is on the disk, at least while it is open.
    """

    local: pathlib.Path

    def write(self, data: bytes) -> int:
        """Appends data, or as much of it as there is room for, and returns how much that is.

        Raises:
          OSError: there is no room for any.
        """

    def sync(self) -> None:
        """Brings all that was written to the disk or into the bucket.

        Raises:
          OSError: that cannot be done.
        """

    def fileno(self) -> int:
        """Returns the descriptor of the file on the disk."""

    def close(self) -> None:
        """Closes the file."""


def open_appended(path: AnyPath) -> AppendedFile:
    """Opens a file for appending, or makes it.

    Raises:
      OSError: it cannot be written.
    """
    return AppendedObject(path) if isinstance(path, BucketPath) else AppendedOnDisk(path)


class AppendedOnDisk:
    """A file on the disk that is appended to."""

    def __init__(self, path: pathlib.Path) -> None:
        self.local, self._file = path, path.open("ab", buffering=0)

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def sync(self) -> None:
        os.fsync(self.fileno())
        if not os.fstat(self.fileno()).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was removed", str(self.local))

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


class AppendedObject:
    """An object in a bucket that is rewritten from a temporary file, to which is appended.

    What could not be brought into the bucket when it is closed stays in that file.
    """

    def __init__(self, path: BucketPath) -> None:
        before = path.read_bytes() if path.is_file() else b""
        descriptor, name = tempfile.mkstemp(prefix="lbsgd-", suffix=f"-{path.name}")
        self._path, self.local = path, pathlib.Path(name)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self._file.write(before)
        self._synced, self._syncing = len(before), threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._rewrite, name="lbsgd-rewrite", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def sync(self) -> None:
        with self._syncing:  # so that no older version comes after a newer one
            # As the system has it: faulthandler writes by the descriptor.
            if os.fstat(self.fileno()).st_size != self._synced:
                data = self.local.read_bytes()
                self._path.write_bytes(data)
                self._synced = len(data)

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.sync()
            self.local.unlink()
        self._file.close()

    def _rewrite(self) -> None:
        while not self._closed.wait(REWRITE_SECONDS):
            with contextlib.suppress(OSError):  # the next `sync` tells
                self.sync()
