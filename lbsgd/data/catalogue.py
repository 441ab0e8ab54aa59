"""The sources of examples by name."""

from collections.abc import Callable

import ml_collections

from lbsgd.data.folder import folder, whole_folder
from lbsgd.data.held_out import Named, hold_out
from lbsgd.data.packed import packed
from lbsgd.data.sources import Splits, digits, npz, synthetic, whole_npz
from lbsgd.data.tfds_source import tfds
from lbsgd.errors import ConfigError

SOURCES: dict[str, Callable[[ml_collections.ConfigDict], Splits]] = {
    "packed": packed,
    "folder": folder,
    "tfds": tfds,
    "npz": npz,
    "digits": digits,
    "synthetic": synthetic,
}

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
    channels = [split.image_shape[-1] for split in splits]
    if channels[0] != channels[1]:
        raise ConfigError(
            f"the training images have {channels[0]} channels, those for validation {channels[1]}"
        )
    return splits


def _splits(config: ml_collections.ConfigDict, seed: int) -> Splits:
    if not config.validation_fraction:
        return SOURCES[config.source](config)
    if config.source not in WHOLE:
        raise ConfigError(
            f"data.validation_fraction is of data.source {' and '.join(WHOLE)}, not "
            f"{config.source}, which has a validation set; set it to 0"
        )
    return hold_out(WHOLE[config.source](config), config.validation_fraction, seed)
