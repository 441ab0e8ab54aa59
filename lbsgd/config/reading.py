"""Reads the config that a user made: which keys it sets, and whether their types are right."""

import difflib
from typing import Any

import ml_collections

from lbsgd.config.keys import Keys, default_tree, flatten, is_options, options_key
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr


def nearest_key(key: str, keys: Keys) -> str:
    """Finds the known key most like `key`: in its last part first, then as a whole."""
    key = key[:100]  # more would take long
    known = sorted(keys)
    known += sorted({name.rsplit(".", 1)[0] for name in known if "." in name})
    last_parts = {name.rsplit(".", 1)[-1] for name in known}
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], last_parts, 1, 0.7)
    if close:
        known = [name for name in known if name.rsplit(".", 1)[-1] == close[0]]
    return difflib.get_close_matches(key, known, 1, 0.0)[0]


def check_known(key: str, keys: Keys) -> None:
    """Raises ConfigError if there is no key `key` (dotted; a group of keys counts)."""
    key = options_key(key) or key
    if not any(name == key or name.startswith(key + ".") for name in keys):
        near = nearest_key(key.removeprefix("config."), keys)
        if key == f"config.{near}":  # as flags have it
            raise ConfigError(f"unknown config key {key!r}; leave out 'config.': {near!r}")
        raise ConfigError(
            f"unknown config key {short_repr(key)}; the nearest known one is {near!r}"
        )


def check_is_key(key: str, keys: Keys) -> None:
    """Raises ConfigError if `key` (dotted) is unknown, or is a group of keys."""
    check_known(key, keys)
    inside = sorted(name for name in keys if name.startswith(key + "."))
    if inside:
        raise ConfigError(f"{key} is a group of keys; set one of them: {', '.join(inside)}")


def read(config: ml_collections.ConfigDict, keys: Keys) -> ml_collections.ConfigDict:
    """Copies a config into one that has all keys, at their defaults where it leaves them out.

    Raises:
      ConfigError: an unknown key, a wrong type, or no config.
    """
    complete = default_tree(keys)
    for key, value in _pairs(config):
        check_known(key, keys)
        _set_checked(complete, key, value)
    return complete


def _set_checked(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets a known key, if the value has its type."""
    *groups, leaf = key.split(".")
    part = config
    for group in groups:
        part = part[group]
    if is_options(key):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} holds options by name, not {short_repr(value)}")
        part[leaf] = ml_collections.ConfigDict(value)
        return
    if isinstance(part.get(leaf), ml_collections.ConfigDict):
        raise ConfigError(f"config key {key!r} is a group of keys, not {short_repr(value)}")
    kind = part.get_type(leaf)
    try:
        # ml_collections itself takes None for anything and True for 1.
        if value is None or (isinstance(value, bool) and kind is not bool):
            raise TypeError
        part[leaf] = value
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{key} must be {kind.__name__}, not {short_repr(value)} ({type(value).__name__})"
        ) from error


def _pairs(config: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
    """Lists all keys and values; raises ConfigError where a file made something else of it."""
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"get_config must return a ConfigDict, not {short_repr(config)}")
    try:
        return list(flatten(config))
    except RecursionError as error:
        raise ConfigError("the config holds itself; a group must not be one of its keys") from error
    except Exception as error:  # of references between keys, which are computed now
        raise ConfigError(f"the config cannot be read: {short_repr(error)}") from error
