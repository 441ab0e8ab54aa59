"""A part of a data set."""

import hashlib

import numpy as np

from lbsgd.data.source import Example, Source


class Subset:
    """Some examples of a source.

    Args:
      indices: of the examples, `[N]`.
      notes: those of this subset.
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
