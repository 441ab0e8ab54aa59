"""Says what a trained network takes and gives: how images are prepared, and its classes by name.

A workdir, each checkpoint and every export hold it as JSON, so that none of them needs the data.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from lbsgd.data.keys import RESIZING_CROPS
from lbsgd.data.source import format_shape
from lbsgd.data.views import CentreCrop, View, Whole
from lbsgd.system.errors import ConfigError


class Interface(NamedTuple):
    """Holds what is done to an image before the network sees it, and what its outputs mean.

    Attributes:
      image_shape: `(h, w, c)` of the network's input; 3 channels are red, green and blue.
      short_side: that an image is resized to before its centre is cropped, in pixels, antialiased;
        0 where images are taken whole, and all have that shape.
      mean, std: `(pixels / 255 - mean) / std` is what the network sees: a number for each channel,
        or one for all.
      classes: the name of each class, by label; the outputs past them mean nothing. () where nobody
        has opened the data.
    """

    image_shape: tuple[int, int, int]
    short_side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def misfit(self, shape: tuple[int, ...]) -> str:
        """Says why an image of a shape `(h, w, c)` cannot be taken; "" where it can."""
        wanted = self.image_shape
        if shape[2] != wanted[2]:
            return f"{shape[2]} channels, and the network takes {wanted[2]}"
        if not self.short_side and shape != wanted:
            taken = f"and the network takes whole images of {format_shape(wanted)}"
            return f"the shape {format_shape(shape)}, {taken}"
        return ""

    def view(self) -> View:
        """Makes what crops and resizes an image as evaluation does."""
        if self.short_side:
            return CentreCrop(self.image_shape, self.short_side)
        return Whole(self.image_shape)

    def to_json(self) -> dict[str, Any]:
        """Converts it to JSON, in the words that exports use too."""
        return {
            "classes": list(self.classes),
            "preprocessing": {
                "image_shape": list(self.image_shape),
                "resize_short_side": self.short_side,
                "mean": list(self.mean),
                "std": list(self.std),
            },
        }


def interface_of(
    data: ml_collections.ConfigDict, image_shape: tuple[int, int, int], classes: tuple[str, ...]
) -> Interface:
    """Takes the interface from the config's `data`."""
    short_side = data.evaluation_short_side if data.crop in RESIZING_CROPS else 0
    return Interface(image_shape, short_side, tuple(data.mean), tuple(data.std), classes)


def read_interface(value: Any) -> Interface:
    """Reads what `Interface.to_json` wrote, from a JSON value that may be anything.

    Raises:
      ConfigError: it is something else.
    """
    try:
        classes, given = value["classes"], value["preprocessing"]
        shape, short_side = tuple(given["image_shape"]), given["resize_short_side"]
        mean, std = (tuple(map(float, given[key])) for key in ("mean", "std"))
        sound = (
            isinstance(given, Mapping)
            and isinstance(classes, list)
            and all(isinstance(name, str) for name in classes)
            and all(type(n) is int and n > 0 for n in shape)
            and type(short_side) is int
            and (not short_side or short_side >= max(shape[:2]))
            and {len(mean), len(std)} <= {1, shape[2]}
            and all(map(math.isfinite, mean + std))
            and all(std)
        )
    except (TypeError, KeyError, ValueError, IndexError, OverflowError):
        sound = False
    if not sound or len(shape) != 3:
        raise ConfigError("it does not say what images its network takes, and which classes it has")
    return Interface(shape, short_side, mean, std, tuple(classes))
