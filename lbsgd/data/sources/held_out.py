"""A part of one set, held out to evaluate on: a function of the seed and the names alone.

An example is held out where

    blake2b("SEED/NAME", 8 bytes, big-endian) < fraction 2^64

with the name below the folder of the classes ("cat/1.jpg"), in bytes. So nothing that is added or
removed moves another example, and a larger fraction holds out the same ones and more. It is not
stratified: the share of a class varies as the binomial distribution has it.
"""

import hashlib
from typing import Protocol

import numpy as np

from lbsgd.data.source import Example, Source, Splits, note_unused
from lbsgd.system.errors import ConfigError


class Named(Source, Protocol):
    """A source whose examples have names that are the same wherever the set lies.

    Attributes:
      labels: `[N]`.
    """

    labels: np.ndarray

    def key(self, index: int) -> bytes:
        """The name of an example within the set."""
        ...


def is_held_out(key: bytes, fraction: float, seed: int) -> bool:
    """Whether the example of this name is held out."""
    digest = hashlib.blake2b(f"{seed}/".encode() + key, digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def hold_out(source: Named, fraction: float, seed: int) -> Splits:
    """The examples to train on and those held out, each in the order of the source.

    Args:
      fraction: to hold out, 0 < fraction < 1.

    Raises:
      ConfigError: nothing is left of one.
    """
    held = np.array([is_held_out(source.key(i), fraction, seed) for i in range(len(source))])
    for what, count in (("held out", held.sum()), ("left to train on", (~held).sum())):
        if not count:
            raise ConfigError(
                f"data.validation_fraction={fraction}: of {len(source):,} images none is {what}"
            )
    train, validation = (np.flatnonzero(part) for part in (~held, held))
    unused = note_unused(source.labels[train], source.classes)
    note = f"held out of {len(source):,} images: {len(validation):,}"
    return Splits(
        Part(source, train, (*source.notes, *filter(None, [unused]))),
        Part(source, validation, (note,)),
    )


class Part:
    """Some examples of a source.

    Args:
      indices: of the examples, `[N]`.
      notes: of this part.
    """

    def __init__(self, source: Source, indices: np.ndarray, notes: tuple[str, ...]) -> None:
        self._source, self._indices, self.notes = source, indices, notes
        self.classes, self.image_shape = source.classes, source.image_shape
        digest = hashlib.blake2b(source.fingerprint.encode(), digest_size=16)
        digest.update(indices.astype("<i8").data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))
