"""Checks which values the keys of a config have, and how large these are."""

import math
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import Key, Keys, Values
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import is_number, short_repr

MOST_NUMBERS = 1000
# The longest path of Linux.
MOST_CHARACTERS = 4096


def check_values(values: Values, keys: Keys) -> None:
    """Checks that each value is one of those its key may have.

    Args:
      values: by dotted key.

    Raises:
      ConfigError: one is not.
    """
    for name, value in values.items():
        check_value(name, value, keys[name])


def check_value(name: str, value: Any, key: Key) -> None:
    """Checks one value, which has the type of the key's default.

    Raises:
      ConfigError: it is none that the key may have: not of its choices or its range; a number, or
        one of several, that is negative, not finite, or too large; too many of them; text that is
        too long, or not of one line.
    """
    if key.dotted:
        _check_names(name, value, key)
    elif key.choices and value not in key.choices:
        raise ConfigError(f"unknown {name} {short_repr(value)}; known: {', '.join(key.choices)}")
    if key.positive and value <= 0:
        raise ConfigError(f"{name} must be positive, not {short_repr(value)}")
    if key.fraction and not 0 <= value < 1:
        raise ConfigError(f"{name} must be at least 0 and less than 1, not {short_repr(value)}")
    if not (key.own_check or key.dotted):
        _check_size(name, value, key)
    if key.check:
        key.check(name, value)


def _check_names(name: str, value: Any, key: Key) -> None:
    """Checks a name, or a tuple of names, of lbsgd's own or of "package.module:name"."""
    for word in value if isinstance(value, tuple) else (value,):
        if not isinstance(word, str):
            raise ConfigError(f"{name} must hold names, not {short_repr(word)}")
        _check_text(name, word)
        if key.choices and word not in key.choices and not is_dotted(word):
            known = ", ".join(filter(None, key.choices))
            raise ConfigError(
                f'unknown {name} {short_repr(word)}; known: {known}, or "package.module:name"'
            )


def _check_size(name: str, value: Any, key: Key) -> None:
    if isinstance(value, dict):
        check_options(name, value)
    elif isinstance(value, str):
        _check_text(name, value)
    elif isinstance(value, tuple):
        if len(value) > MOST_NUMBERS:
            raise ConfigError(f"{name} holds {len(value):,} numbers, more than {MOST_NUMBERS:,}")
        for number in value:
            _check_number(name, number, key)
    elif is_number(value):
        _check_number(name, value, key)


def check_options(name: str, options: Mapping[Any, Any]) -> None:
    """Checks options by name: numbers, words, True or False, None, several of them, or a dict.

    Raises:
      ConfigError: one is something else, which could not be stored along with the run.
    """
    for option, value in options.items():
        key = f"{name}.{option}"
        if not isinstance(option, str) or not option.isidentifier():
            raise ConfigError(f"{name}: {short_repr(option)} is no name of an option")
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Mapping):
                check_options(key, part)
            elif isinstance(part, str):
                _check_text(key, part)
            elif is_number(part):
                _check_number(key, part, Key(0, "", negative=True, most=sys.float_info.max))
            elif not (part is None or isinstance(part, bool)):
                raise ConfigError(f"{key} must be numbers or words, not {short_repr(part)}")


def _check_number(name: str, value: Any, key: Key) -> None:
    if not is_number(value):
        raise ConfigError(f"{name} must hold numbers, not {short_repr(value)}")
    least = -key.most if key.negative else 0
    if value != value or value in (math.inf, -math.inf) or value < least:
        raise ConfigError(f"{name} must be finite and not negative, not {short_repr(value)}")
    if value > key.most:
        raise ConfigError(f"{name} must be at most {key.most:,}, not {short_repr(value)}")


def _check_text(name: str, value: str) -> None:
    if len(value) > MOST_CHARACTERS:
        raise ConfigError(f"{name} has {len(value):,} characters, more than {MOST_CHARACTERS:,}")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise ConfigError(f"{name} must not hold control characters: {short_repr(value)}")
