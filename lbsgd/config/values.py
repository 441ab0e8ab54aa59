"""Checks which values the keys of a config have, and how large these are."""

import math
import unicodedata
from typing import Any

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
    if key.choices and value not in key.choices:
        raise ConfigError(f"unknown {name} {short_repr(value)}; known: {', '.join(key.choices)}")
    if key.positive and value <= 0:
        raise ConfigError(f"{name} must be positive, not {short_repr(value)}")
    if key.fraction and not 0 <= value < 1:
        raise ConfigError(f"{name} must be at least 0 and less than 1, not {short_repr(value)}")
    if not key.own_check:
        _check_size(name, value, key)
    if key.check:
        key.check(name, value)


def _check_size(name: str, value: Any, key: Key) -> None:
    if isinstance(value, str):
        _check_text(name, value)
    elif isinstance(value, tuple):
        if len(value) > MOST_NUMBERS:
            raise ConfigError(f"{name} holds {len(value):,} numbers, more than {MOST_NUMBERS:,}")
        for number in value:
            _check_number(name, number, key)
    elif is_number(value):
        _check_number(name, value, key)


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
