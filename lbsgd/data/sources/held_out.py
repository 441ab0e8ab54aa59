"""Holding out a part of a data set for validation, as a function of the seed and the names only.

An example is held out where

    blake2b("SEED/NAME", 8 bytes, big-endian) < fraction 2^64

with the name relative to the folder of the classes ("cat/1.jpg"), in bytes. So adding or removing
an example moves no other one, and a larger fraction holds out the same examples and more. The split
is not stratified: the share of each class varies binomially.
"""

import hashlib
from typing import Protocol

import numpy as np

from lbsgd.data.source import Source, Splits, note_unused_classes
from lbsgd.data.sources.subset import Subset
from lbsgd.system.errors import ConfigError


class KeyedSource(Source, Protocol):
    """A source whose examples have names that do not depend on where the data set is stored."""

    def key(self, index: int) -> bytes:
        """Returns the name of an example within the data set."""
        ...


def is_held_out(key: bytes, fraction: float, seed: int) -> bool:
    """Returns whether the example of this name is held out."""
    digest = hashlib.blake2b(f"{seed}/".encode() + key, digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def hold_out(source: KeyedSource, fraction: float, seed: int) -> Splits:
    """Splits a source into a training and a validation set, each in the order of the source.

    Args:
      fraction: the expected share of the validation set, 0 < fraction < 1.

    Raises:
      ConfigError: one of them is empty.
    """
    held = np.array([is_held_out(source.key(i), fraction, seed) for i in range(len(source))])
    for what, count in (("held out", held.sum()), ("left to train on", (~held).sum())):
        if not count:
            raise ConfigError(
                f"data.validation_fraction={fraction}: of {len(source):,} images none is {what}"
            )
    train, validation = (np.flatnonzero(part) for part in (~held, held))
    unused = note_unused_classes(source.labels[train], source.classes)
    note = f"{len(validation):,} of {len(source):,} images are held out, to validate on"
    return Splits(
        Subset(source, train, (*source.notes, *filter(None, [unused]))),
        Subset(source, validation, (note,)),
    )
