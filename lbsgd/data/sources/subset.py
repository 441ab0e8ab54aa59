"""Parts of data sets, and what is put together of them."""

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

    @property
    def labels(self) -> np.ndarray:
        return self._source.labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def name(self, index: int) -> str:
        return self._source.name(int(self._indices[index]))


class Joined:
    """The examples of one source, and then those of another that has the same classes."""

    def __init__(self, first: Source, second: Source) -> None:
        self._first, self._second = first, second
        self.classes, self.image_shape = first.classes, first.image_shape
        self.notes = (*first.notes, *second.notes)
        text = f"{first.fingerprint} {second.fingerprint}"
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([self._first.labels, self._second.labels])

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> Example:
        source, place = self._find(index)
        return source[place]

    def name(self, index: int) -> str:
        source, place = self._find(index)
        return source.name(place)

    def _find(self, index: int) -> tuple[Source, int]:
        past = index - len(self._first)
        return (self._second, past) if past >= 0 else (self._first, index)
