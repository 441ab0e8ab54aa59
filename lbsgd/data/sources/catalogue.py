"""The data sources by name."""

from collections.abc import Callable

import ml_collections

from lbsgd.data.corrupt import corrupt_message
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.keys import RESIZING_CROPS
from lbsgd.data.packed.reader import packed
from lbsgd.data.source import Source, Splits, format_shape, shape_of
from lbsgd.data.sources.arrays import digits, npz, whole_npz
from lbsgd.data.sources.fewer import take_examples
from lbsgd.data.sources.folder import folder, whole_folder
from lbsgd.data.sources.held_out import KeyedSource, hold_out
from lbsgd.data.sources.of_classes import take_classes
from lbsgd.data.sources.synthetic import synthetic
from lbsgd.data.sources.tfds import tfds
from lbsgd.system.errors import ConfigError

SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Splits]] = {
    "packed": packed,
    "folder": folder,
    "tfds": tfds,
    "npz": npz,
    "digits": digits,
    "synthetic": synthetic,
}
# Sources whose images no earlier step has read, so that some are checked before training.
UNCHECKED = ("folder", "tfds")
# How many images of each split, evenly spaced, are checked.
SAMPLE = 8

# Sources of which a part can be held out for validation.
WHOLE: dict[str, Callable[[ml_collections.ConfigDict], KeyedSource]] = {
    "folder": whole_folder,
    "npz": whole_npz,
}


def build_sources(config: ml_collections.ConfigDict, seed: int = 0) -> Splits:
    """Opens the data sets that `config` (the `data` part) names.

    Args:
      seed: decides which examples data.validation_fraction holds out.

    Raises:
      ConfigError: there is no such source, or its files are not as they should be.
    """
    if config.source not in SOURCES:
        raise ConfigError(f"unknown data.source {config.source!r}; known: {', '.join(SOURCES)}")
    splits = _splits(config, seed)
    if config.only_classes:
        splits = take_classes(splits, config.only_classes)
    if config.train_examples:
        splits = take_examples(splits, config.train_examples, config.left_out == "validation")
    classes = splits.train.classes
    if len(classes) < 2:
        raise ConfigError(
            f"the training images are of a single class, {', '.join(classes)}; nothing can be "
            "learned from it"
        )
    _check_shapes(splits, config.crop)
    if config.source in UNCHECKED:
        for source in splits:
            _check_sample(source, splits.train, config)
    return splits


def _splits(config: ml_collections.ConfigDict, seed: int) -> Splits:
    if not config.validation_fraction or config.source not in WHOLE:
        return SOURCES[config.source](config)
    return hold_out(WHOLE[config.source](config), config.validation_fraction, seed)


def _check_shapes(splits: Splits, crop: str) -> None:
    """Raises ConfigError if the first images of the two splits do not have matching shapes."""
    train, validation = (split.image_shape for split in splits)
    if train[-1] != validation[-1]:
        raise ConfigError(
            f"the training images have {train[-1]} channels, those for validation {validation[-1]}"
        )
    if crop not in RESIZING_CROPS and train != validation:
        raise ConfigError(
            f"the training images are {format_shape(train)}, those for validation "
            f"{format_shape(validation)}; data.crop='inception' takes images of any size"
        )


def _check_sample(source: Source, train: Source, config: ml_collections.ConfigDict) -> None:
    """Checks a few images of a source, evenly spaced; raises ConfigError if one cannot be used.

    Corrupt ones are ignored here if the config says to skip them in training.
    """
    for index in dict.fromkeys(len(source) * i // SAMPLE for i in range(SAMPLE)):
        try:
            shape = shape_of(source[index].image)
        except CorruptError as error:
            if config.on_corrupt == "skip":
                continue
            raise ConfigError(corrupt_message(source.name(index), error)) from error
        if config.crop not in RESIZING_CROPS and shape != train.image_shape:
            raise ConfigError(
                f"{source.name(index)} is {format_shape(shape)}, the first training image "
                f"{format_shape(train.image_shape)}; data.crop='inception' takes images of any size"
            )
