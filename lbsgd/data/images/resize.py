"""Parts of images, and how they become the size that a network sees.

Two rules. `resize` is the fast one, of OpenCV: between two pixels, or over areas where it halves
and more. It leaves out some of the pixels where an image shrinks by less than 2, so fine patterns
alias. `resample` is Pillow's antialiased bilinear filter, which torchvision's transforms use: as
wide as the image shrinks, so that every pixel counts. Evaluation takes it always, training where
`data.crop_antialias` says so.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

# Threads work on images of their own; OpenCV's would only get in their way.
cv2.setNumThreads(1)


class Box(NamedTuple):
    """A part of an image, in whole pixels; resized by `resize`."""

    top: int
    left: int
    height: int
    width: int


class Window(NamedTuple):
    """A part of an image that may begin and end between pixels; resized by `resample`.

    Attributes:
      box: the pixels that may count; none outside of it does.
      top, left, height, width: in pixels of the image.
    """

    box: Box
    top: float
    left: float
    height: float
    width: float


Region = Box | Window


def resize(
    image: np.ndarray, shape: tuple[int, int] | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes an image `[h, w, c]` to `shape`; None leaves its size.

    Bilinear where it shrinks by less than 2 (as TensorFlow's input pipelines do), else each pixel
    is the mean over its area, so that none is left out.
    """
    height, width = shape or image.shape[:2]
    if out is None:
        out = np.empty((height, width, image.shape[2]), np.uint8)
    if image.shape == out.shape:
        out[:] = image
    else:
        shrink = max(image.shape[0] / height, image.shape[1] / width)
        less = min(image.shape[0], height), min(image.shape[1], width)
        if shrink >= 2 and less != (height, width):  # OpenCV's mean is only for both sides
            return resize(resize(image, less), shape, out)
        method = cv2.INTER_AREA if shrink >= 2 else cv2.INTER_LINEAR
        resized = cv2.resize(image, (width, height), dst=out, interpolation=method)
        if not np.may_share_memory(resized, out):  # OpenCV drops a single channel
            out[:] = resized.reshape(out.shape)
    return out


def window_around(
    part: tuple[float, float, float, float], size: tuple[int, int], shape: tuple[int, int]
) -> Window:
    """The window of an image, with as many pixels around it as the filter reaches.

    What is seen is then a part of the whole image resized.

    Args:
      part: top, left, height and width of the window.
      size: of the image, height and width.
      shape: that the window is resampled to.
    """
    begins, lengths = [], []
    for begin, length, side, pixels in zip(part[:2], part[2:], size, shape):
        reach = max(length / pixels, 1.0)
        begins.append(max(math.floor(begin - reach), 0))
        lengths.append(min(math.ceil(begin + length + reach), side) - begins[-1])
    return Window(Box(*begins, *lengths), *part)


def resample(
    image: np.ndarray,
    window: Window,
    shape: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resamples a window to `shape` by Pillow's antialiased bilinear filter.

    Across first, then down, with pixels rounded in between: some versions of Pillow choose the
    order by the shapes, which are others for a part of an image than for all of it.

    Args:
      image: the pixels of `window.box`, uint8 `[h, w, c]`.
      shape: None for that of the box.
    """
    shape = shape or (image.shape[0], image.shape[1])
    if out is None:
        out = np.empty((*shape, image.shape[2]), np.uint8)
    if image.shape[2] == 3:
        out[:] = _resample(image, "RGB", window, shape)
    else:
        for channel in range(image.shape[2]):
            out[..., channel] = _resample(image[..., channel], "L", window, shape)
    return out


def _resample(image: np.ndarray, mode: str, window: Window, shape: tuple[int, int]) -> np.ndarray:
    (rows, columns), (height, width) = image.shape[:2], shape
    top, left = window.top - window.box.top, window.left - window.box.left
    bilinear = Image.Resampling.BILINEAR
    whole = Image.frombuffer(mode, (columns, rows), np.ascontiguousarray(image), "raw", mode, 0, 1)
    # Of a window up to the border rounding must not go beyond it.
    right, bottom = min(left + window.width, columns), min(top + window.height, rows)
    across = whole.resize((width, rows), bilinear, (left, 0, right, rows))
    return np.asarray(across.resize((width, height), bilinear, (0, top, width, bottom)))
