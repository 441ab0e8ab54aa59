"""Checks an export: it is read back, and gives the outputs of the network it was made of."""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from lbsgd.data.corrupt import corrupt_message
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.source import Source, Splits
from lbsgd.system.errors import ConfigError, first_line
from lbsgd.system.text import one_line, pluralize
from lbsgd.use.export.formats import Format
from lbsgd.use.model import Model
from lbsgd.use.reading import find_images, read_image

# Images that an export is checked on, at most.
CHECKED = 8
_NO_DRAW = np.empty(0)


class FailedError(RuntimeError):
    """An export does not compute what it should; the message says how far it is off."""


class Images(NamedTuple):
    """Holds the images that exports are checked on.

    Attributes:
      pixels: uint8 `[n, h, w, c]`.
      source: what they are: "8 images of the validation data".
    """

    pixels: UInt8[np.ndarray, "n h w c"]
    source: str


class Difference(NamedTuple):
    """Holds how far outputs that were read back are from the network's.

    Attributes:
      largest: the largest difference.
      tolerance: the most that rounding explains.
    """

    largest: float
    tolerance: float


def choose_images(model: Model, given: Sequence[str], data: Splits | None) -> Images:
    """Reads images to check exports on: those given, or of the validation data, or else generated.

    Args:
      given: paths of images and folders, and patterns; the first few count.
      data: of the run, if they could be opened.

    Raises:
      ConfigError: an image cannot be read.
    """
    if given:
        found = list(itertools.islice(find_images(given), CHECKED))
        pixels = np.stack([_read(model, path, i) for i, path in enumerate(found)])
        return Images(pixels, f"{pluralize(len(pixels), 'image')} of those given by --images")
    if data:
        pixels = _evenly_spaced(model, data.validation)
        return Images(pixels, f"{pluralize(len(pixels), 'image')} of the validation data")
    shape = (CHECKED, *model.interface.image_shape)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return Images(noise, "generated images only, of noise, for the data are not here")


def _read(model: Model, path: str, number: int) -> np.ndarray:
    found = read_image(path, number, model.interface)
    if found.pixels is None:
        raise ConfigError(f"{found.name}: {found.problem}")
    return found.pixels


def _evenly_spaced(model: Model, source: Source) -> np.ndarray:
    """Reads a few images of a set, as evaluation sees them."""
    count = min(CHECKED, len(source))
    view = model.interface.view()
    pixels = np.empty((count, *model.interface.image_shape), np.uint8)
    for row, index in enumerate(len(source) * i // count for i in range(count)):
        try:
            view(source[index].image, _NO_DRAW, pixels[row])
        except CorruptError as error:
            raise ConfigError(
                f"{corrupt_message(source.name(index), error)}; --images names others to check on"
            ) from error
    return pixels


def check(kind: Format, path: pathlib.Path, model: Model, images: Images) -> Difference:
    """Compares the outputs of an export with the network's.

    Returns:
      the largest difference.

    Raises:
      FailedError: it is larger than rounding explains, or an output has another shape.
    """
    reference = kind.reference(model)
    expected = jax.tree.leaves(reference(images.pixels))
    found = jax.tree.leaves(_read_back(kind, path, model, images.pixels))
    if [np.shape(x) for x in found] != [np.shape(x) for x in expected]:
        raise FailedError(f"{path.name}: its outputs have other shapes than the network's")
    largest = max(float(np.abs(_wide(x)).max(initial=0)) for x in expected)
    apart = max(_largest_difference(a, b) for a, b in zip(found, expected))
    types = (str(reference.config.dtype), *kind.rounding)
    difference = Difference(apart, largest * relative_rounding(reference, types))
    if not apart <= difference.tolerance:  # NaN is not
        raise FailedError(
            f"{path.name}: what was read back differs from the network by {apart:.2g}, and "
            f"rounding explains at most {difference.tolerance:.2g}"
        )
    return difference


def _read_back(kind: Format, path: pathlib.Path, model: Model, pixels: np.ndarray) -> Any:
    try:
        return kind.outputs(model, path, pixels)
    except (FailedError, ConfigError):
        raise
    except Exception as error:  # of any kind, from a library that reads what is damaged
        reason = one_line(f"{type(error).__name__}: {first_line(error)}")
        raise FailedError(f"{path.name} cannot be read back ({reason})") from error


def _wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def _largest_difference(found: Any, expected: Any) -> float:
    """Finds the largest difference; NaN where one of them is not finite."""
    a, b = _wide(found), _wide(expected)
    finite = np.isfinite(a).all() and np.isfinite(b).all()
    return float(np.abs(a - b).max(initial=0)) if finite else float("nan")


def relative_rounding(model: Model, types: Sequence[str]) -> float:
    """Bounds by how much two orders of summation change outputs, relative to the largest.

    Each array of the network takes part in an operation that rounds. The roundings of a sum of s
    terms add up like a random walk, to sqrt(s) eps of their size, and those of the operations at
    worst one after the other. What is stored in another type (activations in bfloat16) is rounded
    once more by each, at random too; sums are then in float32.

    Args:
      types: that are computed in, or that numbers are rounded to.
    """
    arrays = jax.tree.leaves(dict(model.variables))
    # Of products with a kernel, or of the pixels that are averaged.
    sums = [int(np.prod(x.shape[:-1])) for x in arrays if x.ndim > 1]
    longest = max([*sums, int(np.prod(model.interface.image_shape[:2]))])
    eps = max(map(epsilon, types))
    summed = max(epsilon("float64" if name == "float64" else "float32") for name in types)
    stored = eps if eps > summed else 0.0
    return len(arrays) * math.sqrt(longest) * summed + math.sqrt(len(arrays)) * stored


def epsilon(dtype: Any) -> float:
    """Returns the distance from 1 to the next number of a type."""
    return float(np.spacing(np.ones((), dtype)))
