"""Resizing of regions of images to the size of the network's input, by one of two rules.

`resize` is the fast rule, by OpenCV: bilinear, or the mean over areas if the image shrinks by 2 or
more. If it shrinks by less than 2, some pixels are skipped, so fine patterns alias. `resample` is
Pillow's antialiased bilinear filter, which torchvision's transforms use: its width grows with the
factor by which the image shrinks, so every pixel counts. Evaluation always uses `resample`;
training does if `data.crop_antialias` is set.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

# The pipeline's threads each work on their own image; OpenCV's threads would only disturb them.
cv2.setNumThreads(1)


class Box(NamedTuple):
    """A region of an image in whole pixels; `resize` resizes it."""

    top: int
    left: int
    height: int
    width: int


class Window(NamedTuple):
    """A region of an image that may begin and end between pixels; `resample` resizes it.

    Attributes:
      box: the pixels that the filter reads; none outside of it matter.
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
    """Resizes an image `[h, w, c]` to `shape`; None keeps its size.

    It is bilinear if the image shrinks by less than 2 (as in TensorFlow's input pipelines); else
    each pixel is the mean over its area, so that no pixel is skipped.
    """
    height, width = shape or image.shape[:2]
    if out is None:
        out = np.empty((height, width, image.shape[2]), np.uint8)
    if image.shape == out.shape:
        out[:] = image
    else:
        shrink = max(image.shape[0] / height, image.shape[1] / width)
        less = min(image.shape[0], height), min(image.shape[1], width)
        if shrink >= 2 and less != (height, width):  # OpenCV averages only if both sides shrink
            return resize(resize(image, less), shape, out)
        method = cv2.INTER_AREA if shrink >= 2 else cv2.INTER_LINEAR
        resized = cv2.resize(image, (width, height), dst=out, interpolation=method)
        if not np.may_share_memory(resized, out):  # OpenCV drops a single channel
            out[:] = resized.reshape(out.shape)
    return out


def shrink(image: np.ndarray, out: np.ndarray) -> None:
    """Shrinks an image uint8 `[h, w, c]` into `out`: each pixel is the mean over its area."""
    height, width = out.shape[:2]
    smaller = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    out[:] = smaller.reshape(out.shape)  # OpenCV drops a single channel


def window_around(
    part: tuple[float, float, float, float], size: tuple[int, int], shape: tuple[int, int]
) -> Window:
    """Makes a window, with as many pixels around it as the filter of `resample` reads.

    With them the result is a part of the whole image resized.

    Args:
      part: top, left, height and width of the window.
      size: height and width of the image.
      shape: height and width to which the window will be resampled.
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

    Rows are resampled first, then columns, with pixels rounded in between. Some versions of Pillow
    would choose this order by the shapes, which differ between a part of an image and all of it.

    Args:
      image: the pixels of `window.box`, uint8 `[h, w, c]`.
      shape: height and width of the result; None for those of the box.
      out: the result; by default a new array.
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
    # If the window reaches the border, rounding errors must not carry it beyond.
    right, bottom = min(left + window.width, columns), min(top + window.height, rows)
    across = whole.resize((width, rows), bilinear, (left, 0, right, rows))
    return np.asarray(across.resize((width, height), bilinear, (0, top, width, bottom)))
