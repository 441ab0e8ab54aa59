"""Views of images: which part is cropped and to which size, keyed by (seed, epoch, example).

A view works on one image at a time, so that a JPEG is decoded no further than the view needs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from lbsgd.data.images.decode import crop_and_resize, decode
from lbsgd.data.images.resize import Box, Region, Window, window_around
from lbsgd.data.order import uniform
from lbsgd.data.source import format_shape
from lbsgd.system.errors import ConfigError

TRIES = 10


class View(Protocol):
    """Crops and resizes one image.

    Attributes:
      shape: `(h, w, c)` of the result.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(h, w, c)` of what is seen."""
        ...

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Draws the random numbers of the examples `[N]`: float64 `[N, d]`."""
        ...

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        """Writes the view of an image (pixels, or the bytes of a file) to `out`, uint8 `[h, w, c]`.

        Raises:
          CorruptError: the file cannot be decoded.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """The whole image, unchanged; all images must have one shape."""

    shape: tuple[int, int, int]

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        return np.empty((len(examples), 0))

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        pixels = decode(image) if isinstance(image, bytes) else image
        if pixels.shape != self.shape:
            raise ConfigError(
                f"an image is {format_shape(pixels.shape)}, the first one "
                f"{format_shape(self.shape)}; data.crop='inception' takes images of any size"
            )
        out[:] = pixels


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """A box of random area and aspect, resized, as for GoogLeNet (Szegedy et al. 2015, section 6).

    Equal in distribution to torchvision's RandomResizedCrop: the area is uniform, and so is the
    logarithm of the aspect (width / height). The first of 10 boxes that fits is taken, or else the
    largest box in the middle whose aspect is within the range.

    Attributes:
      seed: of the run.
      area: least and greatest share of the image's area.
      aspect: least and greatest width / height.
      antialias: whether the box is decoded at its full size and resampled as torchvision does it
        (`lbsgd.data.images.resize.resample`), or resized by the faster rule (`resize`).
    """

    shape: tuple[int, int, int]
    seed: int
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    antialias: bool = False

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Draws ten areas, ten log-aspects and a position of the box for each example."""
        draws = uniform(self.seed, "inception crop", epochs, examples, 2 * TRIES + 2)
        low, high = self.area
        draws[:, :TRIES] = low + (high - low) * draws[:, :TRIES]
        low, high = map(math.log, self.aspect)
        draws[:, TRIES:-2] = low + (high - low) * draws[:, TRIES:-2]
        return draws

    def box(self, height: int, width: int, draw: np.ndarray) -> Box:
        """Returns the box in an image of this size."""
        *tries, top, left = draw.tolist()
        for area, log_aspect in zip(tries[:TRIES], tries[TRIES:]):
            target, aspect = area * height * width, math.exp(log_aspect)
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
        low, high = self.aspect
        w = min(width, max(1, round(height * high)))
        h = min(height, max(1, round(width / low)))
        return Box((height - h) // 2, (width - w) // 2, h, w)

    def region(self, height: int, width: int, draw: np.ndarray) -> Region:
        """Returns the box, as a window if it is to be antialiased."""
        box = self.box(height, width, draw)
        return Window(box, *box) if self.antialias else box

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        extract_region(image, functools.partial(self.region, draw=draw), out)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A box of the size of `shape`, anywhere in an image whose short side was resized.

    As in Krizhevsky et al. 2012, section 4.1. Where an image has that short side already, the box
    is a part of it, unchanged.

    Attributes:
      seed: of the run.
      short_side: in pixels; at least as large as the sides of `shape`.
      antialias: whether what is resized is resampled as torchvision does it
        (`lbsgd.data.images.resize.resample`), or by the faster rule (`resize`), at whole pixels.
    """

    shape: tuple[int, int, int]
    seed: int
    short_side: int = 256
    antialias: bool = False

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Draws a position of the box for each example."""
        return uniform(self.seed, "random crop", epochs, examples, 2)

    def region(self, height: int, width: int, draw: np.ndarray) -> Region:
        """Returns the box in an image of this size."""
        size, crop = (height, width), self.shape[:2]
        resized = _resized(size, self.short_side)
        corner = [int(u * (to - length + 1)) for u, to, length in zip(draw, resized, crop)]
        part = _before_resizing(corner, resized, size, crop)
        if self.antialias:
            return window_around(part, size, crop)
        begins, lengths = [], []
        for begin, length, side in zip(part[:2], part[2:], size):
            lengths.append(min(max(round(length), 1), side))
            begins.append(min(round(begin), side - lengths[-1]))
        return Box(*begins, *lengths)

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        extract_region(image, functools.partial(self.region, draw=draw), out)


def _resized(size: tuple[int, int], short_side: int) -> list[int]:
    """Computes the height and width of an image once its short side is resized."""
    return [int(short_side * side / min(size)) for side in size]


def _before_resizing(
    corner: list[int], resized: list[int], size: tuple[int, int], crop: tuple[int, ...]
) -> tuple[float, float, float, float]:
    """Converts a crop of a resized image to top, left, height and width before it was resized."""
    top, left = (at * side / to for at, side, to in zip(corner, size, resized))
    h, w = (length * side / to for length, side, to in zip(crop, size, resized))
    return top, left, h, w


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The centre of an image whose short side was resized to `short_side`, for evaluation.

    The pixels are those of torchvision's Resize(short_side) and CenterCrop(shape) on Pillow's
    images; a few differ by 1 of 255. The image is decoded at its full size and resampled by
    Pillow's antialiased bilinear filter to (short_side, int(short_side * long / short)), and the
    corner of the crop lies at round((side - crop) / 2) of each side. Only what the crop needs is
    computed.

    Attributes:
      short_side: in pixels; at least as large as the sides of `shape`.
    """

    shape: tuple[int, int, int]
    short_side: int = 256

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        return np.empty((len(examples), 0))

    def window(self, height: int, width: int) -> Window:
        """Returns the crop in pixels of an image of this size before it is resized."""
        size, crop = (height, width), self.shape[:2]
        resized = _resized(size, self.short_side)
        corner = [round((side - length) / 2) for side, length in zip(resized, crop)]
        return window_around(_before_resizing(corner, resized, size, crop), size, crop)

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        extract_region(image, self.window, out)


def extract_region(
    image: np.ndarray | bytes, region: Callable[[int, int], Region], out: np.ndarray
) -> None:
    """Writes a region of an image (pixels, or the bytes of a file) to `out`, resized to fit it."""
    if isinstance(image, bytes):
        decode(image, region, out.shape[:2], out)
    else:
        crop_and_resize(image, region, out.shape[:2], out)
