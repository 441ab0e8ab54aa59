"""Paths as users give them."""

import os
import pathlib

from lbsgd.errors import ConfigError


def at_home(path: str) -> pathlib.Path:
    """The path, with the home of the user, or of another one there is, in place of ~.

    Raises:
      ConfigError: the user has none.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith("~/"):
        raise ConfigError(f"{path}: this user has no home; set HOME, or write the path out")
    return pathlib.Path(expanded)
