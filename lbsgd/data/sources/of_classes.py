"""Some of the classes of a data set, numbered anew from 0 on in the order they had."""

import difflib
import hashlib
import re
from collections.abc import Sequence

import numpy as np

from lbsgd.data.source import Example, Source, Splits, list_names
from lbsgd.data.sources.subset import Subset
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

_RANGE = re.compile(r"([0-9]{1,8})-([0-9]{1,8})")


class OfClasses:
    """The examples of some classes of a source, in its order.

    Args:
      kept: labels in the source, ascending; the first is 0 here.
      notes: those of what is left.
    """

    def __init__(self, source: Source, kept: Sequence[int], notes: tuple[str, ...]) -> None:
        places = np.flatnonzero(np.isin(source.labels, kept))
        self._of_label = {label: i for i, label in enumerate(kept)}
        self._subset = Subset(source, places, notes)
        self.notes, self.image_shape = notes, source.image_shape
        self.classes = tuple(source.classes[label] for label in kept)
        # Of classes that have no example too, for they have an output of the network each.
        text = f"{self._subset.fingerprint} {list(kept)}"
        self.fingerprint = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def labels(self) -> np.ndarray:
        return np.array([self._of_label[int(label)] for label in self._subset.labels], np.int64)

    def __len__(self) -> int:
        return len(self._subset)

    def __getitem__(self, index: int) -> Example:
        example = self._subset[index]
        return example._replace(label=self._of_label[example.label])

    def name(self, index: int) -> str:
        return self._subset.name(index)


def take_classes(splits: Splits, only: Sequence[str]) -> Splits:
    """Takes the examples of some classes, to train on and to validate on.

    Args:
      only: names of classes, or ranges of their labels, as "0-4".

    Raises:
      ConfigError: there is no such class, or no example of any.
    """
    classes = splits.train.classes
    kept = sorted({label for words in only for label in _labels(words, classes)})
    names = [classes[label] for label in kept]
    note = f"{len(kept):,} of {len(classes):,} classes are used: {list_names(names)}"
    train, validation = (
        OfClasses(source, kept, (*source.notes, *notes))
        for source, notes in zip(splits, ([note], []))
    )
    for what, source in (("training", train), ("validation", validation)):
        if not len(source):
            raise ConfigError(
                f"data.only_classes: of {list_names(names)} there are no {what} examples"
            )
    return Splits(train, validation)


def _labels(words: str, classes: tuple[str, ...]) -> list[int]:
    """Finds the labels of a class's name, or of a range; a name counts before a range."""
    if words in classes:
        return [classes.index(words)]
    match = _RANGE.fullmatch(words)
    if match:
        first, last = map(int, match.groups())
        if first <= last < len(classes):
            return list(range(first, last + 1))
        raise ConfigError(
            f"data.only_classes: {words!r} is no range of the labels, which are 0 to "
            f"{len(classes) - 1}"
        )
    near = difflib.get_close_matches(words, classes, 1, 0.0)
    raise ConfigError(
        f"data.only_classes: the data have no class {short_repr(words)}; the nearest is "
        f"{short_repr(near[0])}, and labels are given as '0-4'"
    )
