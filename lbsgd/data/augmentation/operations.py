"""The fourteen operations of RandAugment and TrivialAugment, bitwise as Pillow has them.

Each takes an image uint8 `[h, w, c]` of 1 or 3 channels and a magnitude, and returns a new image of
that shape or, where nothing changes, the same one. They are written for OpenCV, which releases
Python's lock: what a pixel becomes is looked up in a table where the operation allows it. What
comes from outside of an image is black, and pixels are not interpolated, as in torchvision.
"""

import math
from collections.abc import Callable, Mapping

import cv2
import numpy as np

Operation = Callable[[np.ndarray, float], np.ndarray]
Affine = tuple[float, float, float, float, float, float]
_LEVELS = np.arange(256)
# Red, green and blue in the grey of ITU-R 601-2, in 65536ths.
_GREY = np.array([19595, 38470, 7471], np.int32)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)


def identity(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Returns the image."""
    return image


# --- positions ---------------------------------------------------------------------------------


def shear_x(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Shears rows: a pixel comes from its row times the magnitude further to the right."""
    return _affine(image, (1.0, magnitude, 0.0, 0.0, 1.0, 0.0))


def shear_y(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Shears columns, as `shear_x` does rows."""
    return _affine(image, (1.0, 0.0, 0.0, magnitude, 1.0, 0.0))


def translate_x(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Moves the image to the right, by whole pixels."""
    return _affine(image, (1.0, 0.0, -float(int(magnitude)), 0.0, 1.0, 0.0))


def translate_y(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Moves the image down, by whole pixels."""
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, -float(int(magnitude))))


def rotate(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Rotates the image around its centre, counterclockwise, by degrees."""
    angle = -math.radians(magnitude)
    # Rounded, so that the sine of half a turn is 0.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = image.shape[1] / 2, image.shape[0] / 2
    return _affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def _affine(image: np.ndarray, matrix: Affine) -> np.ndarray:
    """Takes the pixel at (x, y) from (ax + by + c, dx + ey + f), of the matrix (a, b, c, d, e, f).

    Coordinates are those of the centres of pixels, in 65536ths, as Pillow's are.
    """
    a, b, c, d, e, f = matrix
    from_x = _source(a, b, c, image.shape)
    from_y = _source(d, e, f, image.shape)
    # OpenCV copies without interpolation where coordinates are whole.
    where = np.stack(
        [np.clip(from_x, -1, image.shape[1]), np.clip(from_y, -1, image.shape[0])], axis=-1
    ).astype(np.int16)
    nothing = np.empty(0, np.int16)
    return cv2.remap(image, where, nothing, cv2.INTER_NEAREST).reshape(image.shape)


def _source(a: float, b: float, c: float, shape: tuple[int, ...]) -> np.ndarray:
    """Computes floor(ax + by + c) at the centres of pixels, `[h, w]`."""
    start = _fixed(c + a * 0.5 + b * 0.5)
    across = _fixed(a) * np.arange(shape[1])
    down = _fixed(b) * np.arange(shape[0])
    return (start + down[:, None] + across) >> 16


def _fixed(number: float) -> int:
    return math.floor(number * 65536.0 + 0.5)


# --- colours -----------------------------------------------------------------------------------


def brightness(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Multiplies pixels by 1 + magnitude."""
    return _look_up(image, _blend(np.zeros(256), _LEVELS, magnitude))


def color(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Multiplies the distance from the image's grey by 1 + magnitude; 1 channel has none."""
    if image.shape[2] == 1:
        return image
    return _blend(_grey(image)[..., None], image, magnitude)


def contrast(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Multiplies the distance from the mean grey, a whole number, by 1 + magnitude."""
    mean = int(_grey(image).mean() + 0.5)
    return _look_up(image, _blend(np.full(256, mean), _LEVELS, magnitude))


def sharpness(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Multiplies the distance from the smoothed image by 1 + magnitude; its border stays."""
    smooth = image.copy()
    if min(image.shape[:2]) > 2:
        sums = cv2.filter2D(image, cv2.CV_16S, _SMOOTH).reshape(image.shape)
        # The nearest whole number to a 13th; there are no ties.
        smooth[1:-1, 1:-1] = ((2 * sums[1:-1, 1:-1] + 13) // 26).astype(np.uint8)
    return _blend(smooth, image, magnitude)


def posterize(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Keeps as many of the highest bits of each pixel as the magnitude says."""
    return _look_up(image, _LEVELS & ~(2 ** (8 - int(magnitude)) - 1))


def solarize(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Inverts the pixels from the magnitude on."""
    return _look_up(image, np.where(magnitude > _LEVELS, _LEVELS, 255 - _LEVELS))


def autocontrast(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Stretches each channel, so that its darkest pixel is 0 and its lightest 255."""
    return _look_up(image, *map(_stretched, _channels(image)))


def equalize(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Gives each channel about as many pixels of every level."""
    return _look_up(image, *map(_equalized, _channels(image)))


def _channels(image: np.ndarray) -> list[np.ndarray]:
    return [image[..., channel] for channel in range(image.shape[2])]


def _stretched(channel: np.ndarray) -> np.ndarray:
    low, high = int(channel.min()), int(channel.max())
    if high <= low:
        return _LEVELS
    scale = 255.0 / (high - low)
    return np.clip((_LEVELS * scale - low * scale).astype(np.int64), 0, 255)


def _equalized(channel: np.ndarray) -> np.ndarray:
    counts = np.bincount(channel.ravel(), minlength=256)
    used = counts[counts > 0]
    # Of the pixels but those of the highest level, how many a step of the levels takes.
    step = int(used.sum() - used[-1]) // 255
    if len(used) <= 1 or not step:
        return _LEVELS
    before = np.cumsum(counts) - counts
    return np.minimum((step // 2 + before) // step, 255)


def _grey(image: np.ndarray) -> np.ndarray:
    """Converts an image to its grey, uint8 `[h, w]`."""
    if image.shape[2] == 1:
        return image[..., 0]
    weighed = image.astype(np.int32) @ _GREY
    return ((weighed + 0x8000) >> 16).astype(np.uint8)


def _blend(other: np.ndarray, image: np.ndarray, magnitude: float) -> np.ndarray:
    """Computes other + (1 + magnitude) * (image - other) in float32, cut to whole numbers."""
    start = other.astype(np.float32)
    blended = start + np.float32(1.0 + magnitude) * (image.astype(np.float32) - start)
    return np.clip(blended, 0, 255).astype(np.uint8)


def _look_up(image: np.ndarray, *tables: np.ndarray) -> np.ndarray:
    """Replaces pixels by what stands for them in a table of 256; one for all channels, or each."""
    table = np.stack(tables, axis=-1).astype(np.uint8)
    return cv2.LUT(image, table[None]).reshape(image.shape)


# By the names of the papers' tables.
OPERATIONS: Mapping[str, Operation] = {
    "Identity": identity,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
}
