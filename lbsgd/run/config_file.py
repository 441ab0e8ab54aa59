"""Reads config files: Python that is run, whose mistakes are told in one line."""

import pathlib
import re
import runpy
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ml_collections

from lbsgd.config.files import find_config
from lbsgd.run.config import nearest_key
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath
from lbsgd.system.text import pluralize, short_repr

T = TypeVar("T")


class ConfigFile:
    """A config file that was run.

    Attributes:
      path: of the file.
    """

    def __init__(self, file: str, *, sweep: bool = False) -> None:
        """Finds the file, and runs it.

        Args:
          file: path[:variant] or name[:variant], as `find_config` takes them.
          sweep: whether its sweep is wanted.

        Raises:
          ConfigError: there is none, or it does not run.
        """
        self._file = file
        named, self._variant = split_variant(file)
        self.path = find_config(str(named), sweep=sweep)
        # Not imported: nothing is left behind, so that one file in a process knows of no other.
        self._names: Mapping[str, Any] = self._told(lambda: runpy.run_path(str(self.path)))

    def has(self, function: str) -> bool:
        """Tells whether the file defines a function."""
        return callable(self._names.get(function))

    def call(self, function: str, use: Callable[[Any], T]) -> T:
        """Calls a function of the file with its variant, if one is given.

        Args:
          use: makes of what it returns what is wanted; its mistakes are the file's too.

        Raises:
          ConfigError: it has no such function, or that fails, in one line for whatever came up.
        """
        if not self.has(function):
            raise ConfigError(f"{self.path}: there is no function {function}(arg='') in it")
        return self._told(lambda: use(self._names[function](*self._variant)))

    def config(self) -> ml_collections.ConfigDict:
        """Returns the config of the file.

        Raises:
          ConfigError: it gives none.
        """
        return self.call("get_config", _checked)

    def say_sweep(self) -> str:
        """Says that the file has a sweep, whose rows its config is without: "" where it has none.

        Nor where its rows cannot be read: `lbsgd sweep run` tells why.
        """
        if not self.has("sweep"):
            return ""
        try:
            rows = pluralize(self.call("sweep", lambda found: len(list(found))), "row")
        except ConfigError:
            return ""
        return (
            f"{self.path} has a sweep of {rows}, and this is its get_config alone; "
            f"lbsgd sweep run {self._file} runs the sweep"
        )

    def _told(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error
        except (Exception, SystemExit) as error:
            raise ConfigError(explain_file(error, self.path)) from error


def _checked(config: Any) -> ml_collections.ConfigDict:
    if config is None:
        raise ConfigError("get_config returns no config")
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config must return a ConfigDict, not {short_repr(config)}")
    config.lock()  # what cannot be read of it surfaces here
    return config


def split_variant(file: str) -> tuple[pathlib.Path, list[str]]:
    """Splits the path or name of a config file from its variant, if one is given."""
    path, *variant = file.split(":", 1)
    return pathlib.Path(path), variant


def explain_file(error: BaseException, path: AnyPath) -> str:
    """Explains in one line whatever came up while the config file was read."""
    text = str(error)
    unknown = re.search(r'Key "(\w+)" does not exist', text)
    if unknown:
        near = nearest_key(unknown.group(1))
        return f"{path}: unknown config key {unknown.group(1)!r}; the nearest known one is {near!r}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == str(path)]
    where = f", line {inside[-1].lineno}" if inside else ""
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{path}{where}: {type(error).__name__}: {first}"
