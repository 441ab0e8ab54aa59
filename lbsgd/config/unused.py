"""Finds the keys that were set although the chosen options do not use them."""

from typing import Any, NamedTuple

import ml_collections

from lbsgd.config.keys import Keys, On, Values, Wanted, flatten, set_value


class Unused(NamedTuple):
    """Names a key that has no effect.

    Attributes:
      words: the option that it is used with, which was not chosen.
    """

    key: str
    value: Any
    words: str

    def __str__(self) -> str:
        return f"{self.key}={self.value!r} (used only with {self.words})"


def without_effect(values: Values, keys: Keys) -> list[Unused]:
    """Finds the keys away from their defaults that no chosen option uses, in order of `values`.

    Args:
      values: of all keys, by dotted key.
    """
    found = ((key, value, why_unused(key, values, keys)) for key, value in values.items())
    return [
        Unused(key, value, words)
        for key, value, words in found
        if words and value != keys[key].default and not _follows(key, values, keys)
    ]


def why_unused(name: str, values: Values, keys: Keys) -> str:
    """Names the option not chosen that the key is used with; "" where the key is used.

    Another key that is itself unused counts as its default.
    """
    key = keys[name]
    for other, wanted in key.used_with.items():
        above = why_unused(other, values, keys)
        if (keys[other].default if above else values[other]) not in wanted:
            return above or _words(other, wanted)
    if key.used_if and not key.used_if.holds(values):
        return key.used_if.words
    return ""


def reset_unused(config: ml_collections.ConfigDict, keys: Keys) -> None:
    """Sets the keys of a complete config that no chosen option uses to their defaults."""
    values = dict(flatten(config))
    for key in values:
        if why_unused(key, values, keys):
            set_value(config, key, keys[key].default)


def _words(key: str, wanted: Wanted) -> str:
    if isinstance(wanted, On):
        return f"{key}, which is off"
    return f"{key}={' or '.join(map(repr, wanted))}"


def _follows(name: str, values: Values, keys: Keys) -> bool:
    """Tells whether the value is what the default stands for."""
    follows = keys[name].follows
    return follows is not None and bool(values[name] == follows(values))
