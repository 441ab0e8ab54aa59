"""Describes what a file or a run holds of a network: arrays by name, read when asked for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Entry(NamedTuple):
    """Describes an array as it is stored: its shape, and its type by numpy's name if it has one."""

    shape: tuple[int, ...]
    dtype: str


class Stored(NamedTuple):
    """Holds what there is.

    Attributes:
      what: it is, in a few words for people: "safetensors", "update 400 of a run".
      entries: the arrays by name.
      read: reads one of them.
      classes: the names of the network's classes, by output; () where it does not say.
    """

    what: str
    entries: Mapping[str, Entry]
    read: Callable[[str], np.ndarray]
    classes: tuple[str, ...] = ()


def class_names(value: Any) -> tuple[str, ...]:
    """Takes the names of classes from a JSON value that may be anything; () where it is none."""
    named = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return tuple(value) if named else ()


class UnreadableError(ValueError):
    """A file cannot be read; the message says why, as it continues after its name."""
