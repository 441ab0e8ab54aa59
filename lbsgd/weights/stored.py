"""What a file or a run holds of a network: arrays by name, of which each is read when asked for."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

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
    """

    what: str
    entries: Mapping[str, Entry]
    read: Callable[[str], np.ndarray]


class UnreadableError(ValueError):
    """A file cannot be read; the message says why, as it continues after its name."""
