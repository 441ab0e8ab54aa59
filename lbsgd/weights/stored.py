"""Describes what a file or a run holds of a network: arrays by name, read when asked for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from lbsgd.config.keys import value_of

# The keys that say which of lbsgd's networks has arrays of which names and shapes.
MODEL_KEYS = ("model.name", "model.width", "model.normalization", "model.skip_connections")


class Entry(NamedTuple):
    """Describes an array as it is stored: its shape, and its type by numpy's name if it has one."""

    shape: tuple[int, ...]
    dtype: str


class Pixels(NamedTuple):
    """Says which images a network takes: their shape `(h, w, c)`, mean and std of [0, 1] pixels.

    Mean and std are a number for each channel, or one for all.
    """

    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class About(NamedTuple):
    """Says of stored weights what lbsgd writes beside them.

    Attributes:
      classes: the names of the network's classes, by output; () where it does not say.
      pixels: which images the network takes; None where it does not say.
      model: values by key, of `MODEL_KEYS`; those that are known.
    """

    classes: tuple[str, ...] = ()
    pixels: Pixels | None = None
    model: Mapping[str, Any] = {}


class Stored(NamedTuple):
    """Holds what there is.

    Attributes:
      what: it is, in a few words for people: "safetensors", "update 400 of a run".
      entries: the arrays by name.
      read: reads one of them.
      about: the network.
    """

    what: str
    entries: Mapping[str, Entry]
    read: Callable[[str], np.ndarray]
    about: About = About()


def about_network(interface: Mapping[str, Any], model: Any) -> About:
    """Takes from JSON, whose values may be anything, what it says of a network.

    Args:
      interface: its classes and preprocessing, as checkpoints and exports hold it.
      model: the values of `MODEL_KEYS`, and maybe of others.
    """
    classes = interface.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        classes = []
    known = model if isinstance(model, dict) else {}
    plain = {key: known[key] for key in MODEL_KEYS if isinstance(known.get(key), (str, int, float))}
    return About(tuple(classes), _pixels(interface.get("preprocessing")), plain)


def _pixels(value: Any) -> Pixels | None:
    try:
        shape = tuple(map(int, value["image_shape"]))
        mean, std = (tuple(map(float, value[key])) for key in ("mean", "std"))
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    sound = len(shape) == 3 and {len(mean), len(std)} <= {1, shape[2]}
    return Pixels(shape, mean, std) if sound else None


def model_keys(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Takes the values of `MODEL_KEYS` from a config."""
    return {key: value_of(config, key) for key in MODEL_KEYS}


class UnreadableError(ValueError):
    """A file cannot be read; the message says why, as it continues after its name."""
