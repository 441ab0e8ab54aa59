"""Paths as users give them, and files that are replaced whole."""

import contextlib
import os
import pathlib

from lbsgd.system.errors import ConfigError


def at_home(path: str) -> pathlib.Path:
    """The path, with the home of the user, or of another one there is, in place of ~.

    Raises:
      ConfigError: the user has none.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith("~/"):
        raise ConfigError(f"{path}: this user has no home; set HOME, or write the path out")
    return pathlib.Path(expanded)


def replace_file(path: pathlib.Path, text: str) -> None:
    """Writes a file so that after any crash the old one or the new one is there, whole.

    Raises:
      OSError: it cannot be written; the old one stays.
    """
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move_into_place(partial, path)


def move_into_place(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a file that is on the disk its name, for good, in place of what had it."""
    os.replace(partial, path)
    with contextlib.suppress(OSError):  # not every file system can sync a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
