"""Views of images, and their augmentation on the host, keyed by (seed, epoch, example).

Whoever loads an example, and in whatever batch, sees the same crop, flip and colours.

A view says which part of an image is seen and at what size; it works on one image at a time, so
that a JPEG is decoded no further than the view needs. `CropAndFlip` and `Color` then change
whole batches of one shape.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from scipy import special

from lbsgd.data.decode import decode, see
from lbsgd.data.order import random_below, uniform
from lbsgd.data.resize import Box, Region, Window, window_around
from lbsgd.errors import ConfigError

TRIES = 10


class View(Protocol):
    """Which part of an image is seen.

    Attributes:
      shape: `(h, w, c)` of what is seen.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """The random numbers of each example `[N]`: float64 `[N, d]`."""
        ...

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        """Puts the view of an image, pixels or the bytes of a file, into `out`, uint8 `[h, w, c]`.

        Raises:
          CorruptError: the file cannot be decoded.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """The image as it is; all must have one shape."""

    shape: tuple[int, int, int]

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        return np.empty((len(examples), 0))

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        pixels = decode(image) if isinstance(image, bytes) else image
        if pixels.shape != self.shape:
            raise ConfigError(
                f"an image is {'x'.join(map(str, pixels.shape))}, the first one "
                f"{'x'.join(map(str, self.shape))}; data.crop='inception' takes images of any size"
            )
        out[:] = pixels


@dataclasses.dataclass(frozen=True)
class InceptionCrop:
    """A box of random area and aspect, resized (Szegedy et al. 2015, section 6; GoogLeNet's).

    Equal in distribution to torchvision's RandomResizedCrop: the area is uniform, the logarithm of
    the aspect (width / height) too; of 10 boxes the first that fits is taken, or else the largest
    box in the middle whose aspect is within the range.

    Attributes:
      seed: of the run.
      area: least and greatest part of the image's area.
      aspect: least and greatest width / height.
      antialias: whether the box, decoded at its full size and cut out, is resampled as torchvision
        does it (`lbsgd.data.resize.resample`), or by the faster rule (`resize`).
    """

    shape: tuple[int, int, int]
    seed: int
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    antialias: bool = False

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Ten areas, ten log-aspects, and where the box lies."""
        draws = uniform(self.seed, "inception crop", epochs, examples, 2 * TRIES + 2)
        low, high = self.area
        draws[:, :TRIES] = low + (high - low) * draws[:, :TRIES]
        low, high = map(math.log, self.aspect)
        draws[:, TRIES:-2] = low + (high - low) * draws[:, TRIES:-2]
        return draws

    def box(self, height: int, width: int, draw: np.ndarray) -> Box:
        """The box in an image of this size."""
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
        """The box, or a window of just its pixels."""
        box = self.box(height, width, draw)
        return Window(box, *box) if self.antialias else box

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        look(image, functools.partial(self.region, draw=draw), out)


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The centre of an image whose short side is resized to `short_side`, for evaluation.

    The pixels are those of torchvision's Resize(short_side) and CenterCrop(shape) on Pillow's
    images, up to 1 of 255 here and there: the image is decoded at its full size and resampled by
    Pillow's antialiased bilinear filter to (short_side, int(short_side * long / short)), the corner
    lies at round((side - crop) / 2) of each side. Only what the crop needs is computed.

    Attributes:
      short_side: pixels; no less than the sides of `shape`.
    """

    shape: tuple[int, int, int]
    short_side: int = 256

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        return np.empty((len(examples), 0))

    def window(self, height: int, width: int) -> Window:
        """The crop in pixels of an image of this size, before it is resized."""
        size, crop = (height, width), self.shape[:2]
        resized = [int(self.short_side * side / min(size)) for side in size]
        corner = [round((side - length) / 2) for side, length in zip(resized, crop)]
        top, left = (at * side / to for at, side, to in zip(corner, size, resized))
        h, w = (length * side / to for length, side, to in zip(crop, size, resized))
        return window_around((top, left, h, w), size, (crop[0], crop[1]))

    def __call__(self, image: np.ndarray | bytes, draw: np.ndarray, out: np.ndarray) -> None:
        look(image, self.window, out)


def look(image: np.ndarray | bytes, region: Callable[[int, int], Region], out: np.ndarray) -> None:
    """Puts a region of an image, pixels or the bytes of a file, into `out`, at its size."""
    if isinstance(image, bytes):
        decode(image, region, out.shape[:2], out)
    else:
        see(image, region, out.shape[:2], out)


@dataclasses.dataclass(frozen=True)
class CropAndFlip:
    """Pads with zeros, crops back to size at random, and flips left-right with probability 1/2.

    The augmentation of He et al. 2015, section 4.2 (padding 4 there).

    Attributes:
      seed: of the run.
      padding: pixels on every side; 0 leaves the crop out.
      flip: whether to flip.
    """

    seed: int
    padding: int = 0
    flip: bool = False

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> None:
        """Augments images uint8 `[N, h, w, c]`, of the epochs and examples `[N]`, in place."""
        if self.padding:
            self._crop(images, epochs, examples)
        if self.flip:
            flipped = random_below(2, self.seed, "flip", epochs, examples)
            for i in np.flatnonzero(flipped):
                cv2.flip(images[i], 1, dst=images[i])

    def _crop(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> None:
        margin = (self.padding, self.padding)
        padded = np.pad(images, ((0, 0), margin, margin, (0, 0)))
        height, width = images.shape[1:3]
        offsets = (
            random_below(2 * self.padding + 1, self.seed, axis, epochs, examples).tolist()
            for axis in ("crop top", "crop left")
        )
        for i, (top, left) in enumerate(zip(*offsets)):
            images[i] = padded[i, top : top + height, left : left + width]


# Of the pixels of ImageNet over 255, RGB (fb.resnet.torch, after Krizhevsky et al. 2012).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
GREY = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class Color:
    """Changes brightness, contrast and saturation, and adds PCA lighting.

    Each is an affine map of RGB, and so is all of it together: pixels are rounded and clipped to
    0..255 once, not after each change, so that the order of the three makes no difference. The maps
    are those of fb.resnet.torch and torchvision; the lighting is that of Krizhevsky et al. 2012,
    section 4.1.

    Attributes:
      seed: of the run.
      jitter: j for brightness, contrast and saturation; factors are uniform in 1-j..1+j.
      lighting: standard deviation of the amount of each principal component; 0.1 there.
    """

    seed: int
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lighting: float = 0.0

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> None:
        """Changes images uint8 `[N, h, w, 3]`, of the epochs and examples `[N]`, in place."""
        if not any(self.jitter) and not self.lighting:
            return
        means = np.array([cv2.mean(image)[:3] for image in images])
        for image, matrix in zip(images, self.maps(means, epochs, examples)):
            cv2.transform(image, matrix, dst=image)

    def maps(self, means: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """The affine map (3x3 matrix, then offset) of each image: float64 `[N, 3, 4]`.

        Args:
          means: mean RGB of each image, `[N, 3]`; contrast is changed around their grey.
        """
        draws = uniform(self.seed, "color", epochs, examples, 6)
        factors = 1.0 + np.array(self.jitter) * (2.0 * draws[:, :3] - 1.0)
        brightness, contrast, saturation = factors.T[..., None, None]  # each [N, 1, 1]
        to_grey = np.tile(GREY, (3, 1))
        matrix = saturation * np.eye(3) + (1.0 - saturation) * to_grey
        offset = (1.0 - contrast[..., 0]) * (means @ GREY)[:, None]
        amounts = self.lighting * special.ndtri(draws[:, 3:] + 2.0**-54)  # never 0
        light = 255.0 * (amounts * EIGENVALUES) @ EIGENVECTORS.T
        maps = np.empty((len(draws), 3, 4))
        maps[:, :, :3] = brightness * contrast * matrix
        maps[:, :, 3] = brightness[..., 0] * offset + light
        return maps
