"""The interface of a data source: random access by `len(source)` and `source[i] -> Example`."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from lbsgd.data.images.decode import CorruptError, image_size
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import printable

# How many names, of classes or of kinds of files, one message lists.
MOST_NAMED = 8


def note_unused_classes(labels: np.ndarray, classes: tuple[str, ...]) -> str:
    """Describes the classes that no example has; "" if there are none.

    Args:
      labels: of the examples, `[N]`.
    """
    used = np.zeros(len(classes), bool)
    used[labels] = True
    unused = [classes[label] for label in np.flatnonzero(~used)]
    if not unused:
        return ""
    return f"no examples of {len(unused):,} of the {len(classes):,} classes: {list_names(unused)}"


def list_names(names: Iterable[str]) -> str:
    """Lists names for a message: the first few, and how many more there are."""
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
    """A data set; several threads may read it at the same time.

    Attributes:
      classes: the name of each class, by label.
      image_shape: `(h, w, c)` of the first image, and of all if they have one shape.
      fingerprint: identifies the examples, whatever path they are stored at; a checkpoint holds
        that of the training set, so that a run is not resumed on other data.
      notes: what the user should know of the data set, one line each: files left out, classes
        without examples, ...
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str
    notes: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """The classes of all examples, `[N]`; where they stand with the images, these are read.

        Raises:
          ConfigError: one cannot be read.
        """
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Reads an example.

        Raises:
          CorruptError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Returns where a person finds the example: its file, or its record."""
        ...


def numbered_classes(count: int) -> tuple[str, ...]:
    """Names classes by their number: "0", "1", ..."""
    return tuple(map(str, range(count)))


def shape_of(image: np.ndarray | bytes) -> tuple[int, int, int]:
    """Returns `(h, w, c)` of an image; that of a file is read from its header, with 3 channels.

    Raises:
      CorruptError: the file is not an image that can be read.
    """
    if isinstance(image, bytes):
        return (*image_size(image), 3)
    height, width, channels = image.shape
    return height, width, channels


def format_shape(shape: tuple[int, ...]) -> str:
    """Formats a shape for messages: "224x224x3"."""
    return "x".join(map(str, shape))


def first_image_shape(source: Source) -> tuple[int, int, int]:
    """Returns `(h, w, c)` of the first image of a source that can be read.

    Raises:
      ConfigError: none of the first hundred images can be read.
    """
    for index in range(min(len(source), 100)):
        try:
            return shape_of(source[index].image)
        except CorruptError as error:
            reason = f"{source.name(index)}: {error}"
    raise ConfigError(f"none of the first images can be read ({reason})")


def read_labels(source: Source) -> np.ndarray:
    """Reads the labels of all examples of a source, `[N]`, several at a time.

    Raises:
      ConfigError: an example cannot be read.
    """

    def label(index: int) -> int:
        try:
            return source[index].label
        except CorruptError as error:
            raise ConfigError(
                f"{source.name(index)} cannot be read, so its class is not known: {error}"
            ) from error

    with ThreadPoolExecutor(16, "lbsgd-labels") as pool:
        return np.fromiter(pool.map(label, range(len(source))), np.int64, len(source))


class Splits(NamedTuple):
    """The two data sets of a run: one to train on, one to evaluate on."""

    train: Source
    validation: Source
