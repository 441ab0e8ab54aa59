"""What a command prints. Where nobody takes it, it is lost, and the command goes on."""

import contextlib
import io
import os
import select
import sys
from typing import TextIO

# On fewer a bar has no room for its count and time.
LEAST_COLUMNS = 40


def write_or_lose(file: int, data: bytes) -> None:
    """Writes all of `data` to a file descriptor; what it refuses is lost.

    The terminal or the reader may be gone, or the disk full. The next write tries again, for a disk
    may have room by then.
    """
    with contextlib.suppress(OSError):
        while data:
            try:
                data = data[os.write(file, data) :]
            except BlockingIOError:  # who shares this file with us has made it so
                select.select([], [file], [])


class _Lossy(io.FileIO):
    """A file whose writes do not fail."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        write_or_lose(self.fileno(), bytes(data))
        return len(data)


def lossy(stream: TextIO) -> TextIO:
    """A stream to the same file, whose writes do not fail.

    Characters that its encoding has not are escaped.
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
    """Makes the standard streams of this process such that no printing ends it.

    Every command does this first. A stream that somebody else has put in place stays.
    """
    _fill_closed()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _instead_of(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _instead_of(sys.stderr)


def _fill_closed() -> None:
    """Opens the standard descriptors that are closed: else the next file opened is printed over."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


def _instead_of(stream: TextIO | None) -> TextIO:
    if stream is None:  # which is how Python says that it was closed
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    return lossy(stream)


def takes_bar() -> bool:
    """Whether stdout is a terminal on which a bar can be drawn."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return _columns() >= LEAST_COLUMNS


def _columns() -> int:
    """As rich counts them, which takes 0 for 80."""
    said = os.environ.get("COLUMNS", "")
    if said.isdigit():
        return int(said)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:  # it is gone, or none that the system knows
        return 0
