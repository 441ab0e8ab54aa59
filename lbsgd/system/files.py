"""Paths as users write them, on disks and in buckets, and atomic replacement of files."""

import contextlib
import difflib
import hashlib
import itertools
import os
import pathlib

from lbsgd.system.bucket import LIKE_BUCKET, BucketPath
from lbsgd.system.errors import ConfigError

# What both have in common is what may be asked of it.
AnyPath = pathlib.Path | BucketPath
# Entries of a folder in which something is looked for.
_LOOKED_AT = 10_000


def any_path(path: "str | AnyPath") -> AnyPath:
    """Tells paths in buckets, such as "gs://bucket/runs/x", from those on disks.

    Raises:
      ConfigError: it begins as one in a bucket, and is none that can be read.
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path)
    return BucketPath(text) if LIKE_BUCKET.match(text) else pathlib.Path(text)


def user_path(path: str) -> AnyPath:
    """Reads a path as users write it: in a bucket, or on the disk with ~ for a home folder.

    Raises:
      ConfigError: as `any_path` and `expand_home`.
    """
    return any_path(path) if LIKE_BUCKET.match(path) else expand_home(path)


def expand_home(path: str) -> pathlib.Path:
    """Replaces ~ or ~USER at the start of a path on the disk by that user's home folder.

    Raises:
      ConfigError: this user has no home, or it is not on the disk.
    """
    if LIKE_BUCKET.match(path):
        raise ConfigError(
            f"{path} is not on a disk, and only runs and packed data may lie in buckets; mount the "
            "bucket, or pack the data on a disk by lbsgd prepare and copy them there"
        )
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith("~/"):
        raise ConfigError(f"{path}: this user has no home; set HOME, or write the path out")
    return pathlib.Path(expanded)


def nearest_path(path: pathlib.Path, *, folders: bool = False) -> pathlib.Path | None:
    """Finds what there is that is called most like the first part of a path that is missing.

    Args:
      folders: of folders alone.

    Returns:
      its path; None where nothing is called nearly so.
    """
    path = path.absolute()
    try:
        while not path.parent.is_dir():
            path = path.parent
        entries = itertools.islice(os.scandir(path.parent), _LOOKED_AT)
        there = [entry.name for entry in entries if entry.is_dir() or not folders]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name[:100], there, 1)
    return path.with_name(near[0]) if near else None


def file_checksum(path: pathlib.Path) -> str:
    """Computes the SHA-256 of a file on the disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: AnyPath, content: str | bytes) -> None:
    """Replaces a file atomically: after a crash, either the old file or the new one is complete.

    Raises:
      OSError: the new file cannot be written; the old one stays.
    """
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, BucketPath):
        path.write_bytes(data)
        return
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    move_into_place(partial, path)


def append_line(path: AnyPath, line: str) -> None:
    """Appends a line to a file that has few, and that a crash may cut short; makes it if need be.

    Raises:
      OSError: it cannot be written.
    """
    if isinstance(path, BucketPath):
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + f"{line}\n".encode())
        return
    with path.open("a") as file:
        file.write(f"{line}\n")


def move_into_place(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Renames a file that is already on the disk, durably, and replaces any file of that name."""
    os.replace(partial, path)
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
