"""Output streams that never fail: what cannot be printed is lost, and the command continues."""

import contextlib
import io
import os
import select
import sys
from typing import TextIO

# A narrower terminal has no room for the count and the time of a bar.
LEAST_COLUMNS = 40


def write_or_lose(file: int, data: bytes) -> None:
    """Writes all of `data` to a file descriptor, and drops what it refuses.

    The terminal or the reader may be gone, or the disk full. The next write tries again, because
    the disk may have room by then.
    """
    with contextlib.suppress(OSError):
        while data:
            try:
                data = data[os.write(file, data) :]
            except BlockingIOError:  # another process that shares this file made it non-blocking
                select.select([], [file], [])


class _Lossy(io.FileIO):
    """A file whose writes do not fail."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        write_or_lose(self.fileno(), bytes(data))
        return len(data)


def never_failing(stream: TextIO) -> TextIO:
    """Returns a stream to the same file whose writes never fail.

    Characters that its encoding lacks are escaped.
    """
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        _Lossy(stream.fileno(), "w", closefd=False),
        stream.encoding,
        "backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=getattr(stream, "write_through", False),
    )


def protect_streams() -> None:
    """Replaces stdout and stderr so that no print can end this process.

    Every command calls this first. Streams that other code has already replaced are left alone.
    """
    _fill_closed()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr)


def _fill_closed() -> None:
    """Opens closed standard descriptors; else the next opened file would receive the output."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


def _protected(stream: TextIO | None) -> TextIO:
    if stream is None:  # which is how Python says that it was closed
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    return never_failing(stream)


def supports_progress_bar() -> bool:
    """Returns whether stdout is a terminal on which a progress bar can be drawn."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return _columns() >= LEAST_COLUMNS


def _columns() -> int:
    """Counts the columns of the terminal as rich does, except that rich takes 0 for 80."""
    said = os.environ.get("COLUMNS", "")
    if said.isdigit():
        return int(said)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:  # the terminal is gone, or the system does not know its size
        return 0
