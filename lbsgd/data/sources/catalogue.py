"""The sources of examples by name."""

from collections.abc import Callable

import ml_collections

from lbsgd.data.corrupt import refusal
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.packed.reader import packed
from lbsgd.data.source import Source, Splits, in_words, shape_of
from lbsgd.data.sources.arrays import digits, npz, whole_npz
from lbsgd.data.sources.folder import folder, whole_folder
from lbsgd.data.sources.held_out import Named, hold_out
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
# Whose images nobody has looked at before training.
UNCHECKED = ("folder", "tfds")
# So many of each split, all along it, are looked at before training.
SAMPLE = 8

# Those of which a part can be held out: all of the examples there are.
WHOLE: dict[str, Callable[[ml_collections.ConfigDict], Named]] = {
    "folder": whole_folder,
    "npz": whole_npz,
}


def build_sources(config: ml_collections.ConfigDict, seed: int = 0) -> Splits:
    """The splits that `config` (the `data` part) names.

    Args:
      seed: of what is held out by data.validation_fraction.

    Raises:
      ConfigError: no such source, or its files are not what they should be.
    """
    if config.source not in SOURCES:
        raise ConfigError(f"unknown data.source {config.source!r}; known: {', '.join(SOURCES)}")
    splits = _splits(config, seed)
    classes = splits.train.classes
    if len(classes) < 2:
        raise ConfigError(
            f"the training images are of a single class, {', '.join(classes)}; nothing can be "
            "learned of it"
        )
    _check_shapes(splits, config.crop)
    if config.source in UNCHECKED:
        for source in splits:
            _check_some(source, splits.train, config)
    return splits


def _splits(config: ml_collections.ConfigDict, seed: int) -> Splits:
    if not config.validation_fraction or config.source not in WHOLE:
        return SOURCES[config.source](config)
    return hold_out(WHOLE[config.source](config), config.validation_fraction, seed)


def _check_shapes(splits: Splits, crop: str) -> None:
    """Raises ConfigError where the first images of the two splits do not go together."""
    train, validation = (split.image_shape for split in splits)
    if train[-1] != validation[-1]:
        raise ConfigError(
            f"the training images have {train[-1]} channels, those for validation {validation[-1]}"
        )
    if crop != "inception" and train != validation:
        raise ConfigError(
            f"the training images are {in_words(train)}, those for validation "
            f"{in_words(validation)}; data.crop='inception' takes images of any size"
        )


def _check_some(source: Source, train: Source, config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError where some images of a source, all along it, cannot be used.

    What is corrupt may be skipped later, where the config says so.
    """
    for index in dict.fromkeys(len(source) * i // SAMPLE for i in range(SAMPLE)):
        try:
            shape = shape_of(source[index].image)
        except CorruptError as error:
            if config.on_corrupt == "skip":
                continue
            raise ConfigError(refusal(source.name(index), error)) from error
        if config.crop != "inception" and shape != train.image_shape:
            raise ConfigError(
                f"{source.name(index)} is {in_words(shape)}, the first training image "
                f"{in_words(train.image_shape)}; data.crop='inception' takes images of any size"
            )
