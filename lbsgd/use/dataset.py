"""Gives a data set the labels of a network: classes are matched by name, else by number."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from lbsgd.config.keys import flatten
from lbsgd.config.unused import without_effect
from lbsgd.data.images.decode import CorruptError, decode
from lbsgd.data.interface import Interface
from lbsgd.data.source import Example, Source, numbered_classes
from lbsgd.data.sources.files import to_nfc
from lbsgd.data.sources.unseen import open_unseen
from lbsgd.run.config import KEYS
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr
from lbsgd.use.reading import grey
from lbsgd.use.stored import TRAINING_SET, Stored


class Dataset(NamedTuple):
    """Holds a data set with the labels of a network.

    Attributes:
      name: its source, and where it lies.
      own: whether it is that which the run was validated on.
      notes: what the user should know of it, a line each.
    """

    source: Source
    name: str
    own: bool
    notes: tuple[str, ...]


class Relabelled:
    """The examples of a source with other labels.

    Args:
      labels: the new label of each old one, `[classes of the source]`.
      classes: by new label.
    """

    def __init__(self, source: Source, labels: np.ndarray, classes: tuple[str, ...]) -> None:
        self._source, self._labels, self.classes = source, labels, classes
        self.image_shape, self.notes = source.image_shape, source.notes
        self.fingerprint = source.fingerprint

    @property
    def labels(self) -> np.ndarray:
        """The new labels of all examples, `[N]`."""
        return self._labels[self._source.labels]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        image, label = self._source[index]
        return Example(image, int(self._labels[label]))

    def name(self, index: int) -> str:
        """Returns where a person finds the example."""
        return self._source.name(index)


class Grey:
    """The examples of a source of image files, which are to be grey, in one channel."""

    def __init__(self, source: Source) -> None:
        self._source, self.classes, self.notes = source, source.classes, source.notes
        self.fingerprint = source.fingerprint
        self.image_shape = (*source.image_shape[:2], 1)

    @property
    def labels(self) -> np.ndarray:
        """The labels of all examples, `[N]`."""
        return self._source.labels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        image, label = self._source[index]
        return Example(grey(decode(image) if isinstance(image, bytes) else image), label)

    def name(self, index: int) -> str:
        """Returns where a person finds the example."""
        return self._source.name(index)


def open_dataset(
    stored: Stored, config: ml_collections.ConfigDict, given: Sequence[str]
) -> Dataset:
    """Opens what a network is to be evaluated on.

    Args:
      config: of the run, with what was set to evaluate it.
      given: which of its keys were.

    Raises:
      ConfigError: it is not as it should be, or has classes that the network does not know.
    """
    _check_has_effect(config, given)
    trained_on = str(stored.manifest.identity.get(TRAINING_SET, ""))
    of_data = [key.removeprefix("data.") for key in given if key.startswith("data.")]
    classes = stored.interface.classes
    source = open_unseen(
        config.data, config.seed, classes=classes, trained_on=trained_on, given=of_data
    )
    if stored.interface.image_shape[2] == 1 and _is_of_files(source):
        source = Grey(source)
    _check_images(source, stored.interface)
    labels, note = match_classes(source.classes, classes)
    if (labels != np.arange(len(labels))).any() or len(labels) != len(classes):
        source = Relabelled(source, labels, classes)
    own = source.fingerprint == stored.described.get("validation_set")
    name = " ".join(filter(None, (config.data.source, config.data.dir)))
    return Dataset(source, name, own or not of_data, (*source.notes, *filter(None, [note])))


def match_classes(theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[np.ndarray, str]:
    """Finds the label that a network has for each class of a data set.

    Args:
      theirs: names of the data's classes, by label.
      ours: those of the network.

    Returns:
      labels, int32 `[classes of the data]`; and a line where they were matched by number, else "".

    Raises:
      ConfigError: the network does not know one.
    """
    label_of = {to_nfc(name): label for label, name in enumerate(ours)}
    unknown = [name for name in theirs if to_nfc(name) not in label_of]
    if not unknown:
        return np.array([label_of[to_nfc(name)] for name in theirs], np.int32), ""
    if theirs == numbered_classes(len(theirs)) and len(theirs) <= len(ours):
        note = (
            f"the data's classes have numbers, not names: they are matched by number, 0 with "
            f"{ours[0]!r}"
        )
        return np.arange(len(theirs), dtype=np.int32), note
    (near,) = difflib.get_close_matches(unknown[0][:100], ours, 1, 0.0)
    raise ConfigError(
        f"the data have a class {short_repr(unknown[0])}, which the network does not know; the "
        f"nearest that it knows is {short_repr(near)}"
    )


def _check_has_effect(config: ml_collections.ConfigDict, given: Sequence[str]) -> None:
    """Checks that what was set changes anything: data.dir does not without its data.source."""
    for unused in without_effect(dict(flatten(config)), KEYS):
        if unused.key in given:
            raise ConfigError(
                f"{unused.key}={unused.value!r} has no effect: it is used only with {unused.words}"
            )


def _is_of_files(source: Source) -> bool:
    try:
        return isinstance(source[0].image, bytes)
    except CorruptError:
        return True


def _check_images(source: Source, interface: Interface) -> None:
    """Checks the first image; a later one that differs is named as it is read."""
    misfit = interface.misfit(source.image_shape)
    if misfit:
        raise ConfigError(f"the images have {misfit}")
