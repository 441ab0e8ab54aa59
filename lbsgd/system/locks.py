"""Locks of folders, on disks and in buckets: one process has a folder at a time.

On a disk the system keeps a lock, and releases it when its process ends. A bucket can only say who
was first to create an object. So there the lock is an object below `.lock`, named by a number, and
whoever creates the next number has the folder. The holder rewrites its object every few seconds.
Who sees it unchanged for `LEASE_SECONDS`, by a clock of their own, takes the holder for dead and
creates the next number; no two clocks are ever compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import threading
import time
import uuid
from typing import Protocol

from lbsgd.system.bucket import BucketPath
from lbsgd.system.files import AnyPath

# How long a holder may be silent, and how often it speaks.
LEASE_SECONDS, RENEW_SECONDS = 60.0, 10.0


class Lock(Protocol):
    """A lock of a folder; it is taken once, and released by `close` or the end of the process."""

    def take(self) -> str:
        """Takes the lock, unless somebody else has it: "", or who that is.

        Raises:
          OSError: the folder cannot be written.
        """

    def lost_to(self) -> str:
        """Tells who has taken the lock from this process: "" if nobody has."""

    def close(self) -> None:
        """Releases the lock."""


def lock_of(folder: AnyPath) -> Lock:
    """Opens the lock of a folder that exists.

    Raises:
      OSError: the folder cannot be written.
    """
    path = folder / ".lock"
    return BucketLock(path) if isinstance(path, BucketPath) else FileLock(path)


def _holder() -> str:
    return f"process {os.getpid()} on {platform.node()}"


class FileLock:
    """Locks a folder on a disk; on a file system without locks everybody gets it."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = path.open("a+")

    def take(self) -> str:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            return self._file.read().strip() or "another run"
        except OSError:
            pass
        self._file.truncate(0)
        self._file.write(_holder())
        self._file.flush()
        return ""

    def lost_to(self) -> str:
        return ""

    def close(self) -> None:
        self._file.close()


class BucketLock:
    """Locks a folder in a bucket, and keeps the lock by a thread."""

    def __init__(self, folder: BucketPath) -> None:
        self._folder, self._token, self._renewals = folder, uuid.uuid4().hex, 0
        self._mine: BucketPath | None = None
        self._seen, self._since = b"", time.monotonic()
        self._closed, self._renewing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lbsgd-lock", daemon=True)

    def take(self) -> str:
        numbers = self._numbers()
        newest = max(numbers, default=0)
        if newest:
            with contextlib.suppress(FileNotFoundError):  # released since
                there = (self._folder / str(newest)).read_bytes()
                if not self._is_dead(there):
                    return _named(there)
        mine = self._folder / str(newest + 1)
        if not mine.create(self._content()):
            return "another run"
        self._mine = mine
        for number in numbers:
            (self._folder / str(number)).unlink(missing_ok=True)
        self._thread.start()
        return ""

    def lost_to(self) -> str:
        """Asks the bucket; while that cannot be reached, nobody is known to have it."""
        try:
            return self._renew()
        except OSError:
            return ""

    def close(self) -> None:
        self._closed.set()
        if self._mine:
            self._thread.join()
            with contextlib.suppress(OSError):  # then it expires
                # Somebody else may have this number by now.
                if self._token.encode() in self._mine.read_bytes():
                    self._mine.unlink(missing_ok=True)

    def _numbers(self) -> list[int]:
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]

    def _is_dead(self, content: bytes) -> bool:
        """Tells whether a lock was looked at for as long as a holder may be silent."""
        now = time.monotonic()
        if content != self._seen:
            self._seen, self._since = content, now
        return now - self._since > LEASE_SECONDS

    def _content(self) -> bytes:
        self._renewals += 1
        now = {"holder": _holder(), "token": self._token, "renewals": self._renewals}
        return json.dumps({**now, "time": time.time()}).encode()

    def _successor(self) -> str:
        """Tells who has the lock instead of this process: "" if nobody has."""
        assert self._mine
        newest = self._folder / str(max(self._numbers(), default=0))
        try:
            content = newest.read_bytes()
        except FileNotFoundError:
            return "another run"  # which has ended
        return "" if self._token.encode() in content else _named(content)

    def _renew(self) -> str:
        assert self._mine
        with self._renewing:
            successor = self._successor()
            if not successor:
                self._mine.write_bytes(self._content())
            return successor

    def _keep(self) -> None:
        """Renews the lock until it is closed or lost; `lost_to` tells of that."""
        while not self._closed.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # it may be there again in time
                if self._renew():
                    return


def _named(content: bytes) -> str:
    try:
        return str(json.loads(content)["holder"])
    except (ValueError, KeyError, TypeError):
        return "another run"
