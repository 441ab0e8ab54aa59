"""Defines what a source of examples is.

Each is random-access: `len(source)`, `source[i] -> Example`.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from lbsgd.data.images.decode import CorruptError, image_size
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import printable

# Of the kinds of what was left out, and of classes, that a line names.
MOST_NAMED = 8


def note_unused(labels: np.ndarray, classes: tuple[str, ...]) -> str:
    """The line that says which classes no example has; "" if there are none.

    Args:
      labels: `[N]`, of the examples.
    """
    used = np.zeros(len(classes), bool)
    used[labels] = True
    unused = [classes[label] for label in np.flatnonzero(~used)]
    if not unused:
        return ""
    return f"no examples of {len(unused):,} of the {len(classes):,} classes: {named(unused)}"


def named(names: Iterable[str]) -> str:
    """Names for a line, the first few of them."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(printable, names[:MOST_NAMED])) + more


CHANNELS = (1, 3, 4)


class Example(NamedTuple):
    """An image and its class.

    Attributes:
      image: pixels, uint8 `[h, w, c]`, or the bytes of an image file (JPEG, PNG, ...).
      label: 0..classes-1.
    """

    image: np.ndarray | bytes
    label: int


class Source(Protocol):
    """A set of examples; several threads may ask it at once.

    Attributes:
      classes: their names, by label.
      image_shape: `(h, w, c)` of the first image, and of all where they do not differ.
      fingerprint: differs where the examples do, on whatever path they lie.
      notes: what a person should know of the set, a line each: files left out, classes that no
        example has, ...
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The example.

        Raises:
          CorruptError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Where a person finds the example: its file, or its record."""
        ...


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


def shape_of(image: np.ndarray | bytes) -> tuple[int, int, int]:
    """`(h, w, c)` of an image; of a file, from its header, once it is decoded to RGB.

    Raises:
      CorruptError: the file is none that can be read.
    """
    if isinstance(image, bytes):
        return (*image_size(image), 3)
    height, width, channels = image.shape
    return height, width, channels


def in_words(shape: tuple[int, ...]) -> str:
    """A shape as people write it: "224x224x3"."""
    return "x".join(map(str, shape))


def first_shape(source: Source) -> tuple[int, int, int]:
    """The shape of the first image file that can be read; once decoded it is RGB.

    Raises:
      ConfigError: none of the first hundred can be read.
    """
    for index in range(min(len(source), 100)):
        try:
            return shape_of(source[index].image)
        except CorruptError as error:
            reason = f"{source.name(index)}: {error}"
    raise ConfigError(f"not one of the first images is good ({reason})")


class Splits(NamedTuple):
    """The examples to train on and those to evaluate on."""

    train: Source
    validation: Source
