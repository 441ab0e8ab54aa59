"""The sources of examples by name."""

from collections.abc import Callable

import ml_collections

from lbsgd.data.folder import folder
from lbsgd.data.packed import packed
from lbsgd.data.sources import Splits, digits, npz, synthetic
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


def build_sources(config: ml_collections.ConfigDict) -> Splits:
    """The splits that `config` (the `data` part) names.

    Raises:
      ConfigError: no such source, or its files are not what they should be.
    """
    if config.source not in SOURCES:
        raise ConfigError(f"unknown data.source {config.source!r}; known: {', '.join(SOURCES)}")
    splits = SOURCES[config.source](config)
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
