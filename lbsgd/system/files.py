"""Paths as users write them, and atomic replacement of files."""

import contextlib
import os
import pathlib

from lbsgd.system.errors import ConfigError


def expand_home(path: str) -> pathlib.Path:
    """Replaces ~ or ~USER at the start of a path by that user's home folder.

    Raises:
      ConfigError: this user has no home.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith("~/"):
        raise ConfigError(f"{path}: this user has no home; set HOME, or write the path out")
    return pathlib.Path(expanded)


def replace_file(path: pathlib.Path, text: str) -> None:
    """Replaces a file atomically: after a crash, either the old file or the new one is complete.

    Raises:
      OSError: the new file cannot be written; the old one stays.
    """
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move_into_place(partial, path)


def move_into_place(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Renames a file that is already on the disk, durably, and replaces any file of that name."""
    os.replace(partial, path)
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
