"""Conversion of pixels of any type to RGB of 8 bits.

There is one rule: a sample becomes round(255 * value / largest), where `largest` belongs to its
type: 65,535 for 16 bits, the maximum that a PGM or PPM states, 1 for floating point. It depends on
no other value of the image, so nothing is stretched. The same values give the same pixels in PNG,
PGM and TIFF. Images that the rule does not fit are refused with the reason: negative values,
floating point outside of 0 to 1, values so small that all would be black, and unsupported types.
"""

import io
import re

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

# Modes of Pillow with at most 8 bits, which it can convert to RGB.
_8_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_TIFF = (b"II*\0", b"MM\0*")
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339
_KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floating point"}
_NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,10})" + rb"\s")
# Floating-point values this far outside of 0 to 1 still round to 0 or 255.
_HALF = 0.5 / 255


def check_type(image: Image.Image) -> None:
    """Checks, by the header of an opened image, that its pixels can be converted.

    Raises:
      ValueError: there is no rule for its type of pixels.
    """
    if _is_grey(image):
        return
    kind, bits = "", 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits, sample_format = _tiff_samples(image)
        kind = f": {describe_samples(image.tag_v2)}" if bits > 8 or sample_format == 2 else ""
    if image.mode not in _8_BITS or (kind and (bits != 16 or image.mode[:3] != "RGB")):
        raise ValueError(
            f"no rule brings pixels of the type {image.mode}{kind} to 8 bits; save it as 8-bit "
            "grey or RGB"
        )


def to_rgb(image: Image.Image, data: bytes) -> np.ndarray:
    """Converts an opened image to RGB, uint8 `[h, w, 3]`; transparency is dropped.

    Args:
      data: the bytes of its file.

    Raises:
      ValueError, OSError, SyntaxError: it is damaged, or the rule does not fit it.
    """
    check_type(image)
    found = _read_netpbm(data) if image.format == "PPM" else None
    if found:
        pixels = to_8_bits(*found)
    elif _is_grey(image):
        pixels = to_8_bits(*_read_grey(image, data))
    else:
        image.info.pop("transparency", None)  # which Pillow would warn of
        pixels = np.asarray(image.convert("RGB"))
        if _is_deep(image, data):
            pixels = to_8_bits(_read_deep(data, pixels), 65535)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def to_8_bits(values: np.ndarray, largest: int) -> np.ndarray:
    """Converts values to round(255 * value / largest), uint8.

    Raises:
      ValueError: this rule does not fit the values.
    """
    least, most = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (least >= -_HALF and most <= largest + _HALF):  # NaN is in no range
            raise ValueError(
                f"floating-point values from {least:g} to {most:g}, which are not within 0 to 1; "
                "scale them, or save it in 8 bits"
            )
    elif least < 0:
        raise ValueError(f"values down to {least:,}; save it without negative ones")
    elif most > largest:
        raise ValueError(f"values up to {most:,}, more than the {largest:,} it states")
    scaled = np.rint(values.astype(np.float64) * 255.0 / largest)
    pixels = np.clip(scaled, 0, 255).astype(np.uint8)
    if values.any() and not pixels.any():
        raise ValueError(
            f"values up to {most:,} of {largest:,} would all be black; save it in 8 or 16 bits"
        )
    return pixels


def describe_samples(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    """Describes the samples of a TIFF: "3 samples of 32 bits (floating point)"."""
    bits = _as_tuple(tags.get(_BITS, 1))
    kind = _KINDS.get(_as_tuple(tags.get(_SAMPLE_FORMAT, 1))[0], "another format")
    return f"{len(bits)} samples of {bits[0]} bits ({kind})"


def describe_unknown(data: bytes) -> str:
    """Describes a TIFF that Pillow cannot open; "" for any other file."""
    if not data.startswith(_TIFF):
        return ""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return (
            f"a TIFF of {describe_samples(tags)}, which has no rule; save it as 8-bit grey or RGB"
        )
    except Exception:  # damaged in one of many ways
        return ""


def _as_tuple(value: object) -> tuple[int, ...]:
    return (value or (1,)) if isinstance(value, tuple) else (int(str(value)),)


def _is_grey(image: Image.Image) -> bool:
    """Returns whether an image has one sample per pixel, of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Returns whether a PNG or TIFF has 16 bits per sample, of which Pillow reads the upper 8."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_samples(image)[0] == 16
    return image.format == "PNG" and data[24] == 16


def _tiff_samples(image: TiffImagePlugin.TiffImageFile) -> tuple[int, int]:
    """Returns bits and format of the first sample of a pixel."""
    tags = image.tag_v2
    return _as_tuple(tags.get(_BITS, 1))[0], _as_tuple(tags.get(_SAMPLE_FORMAT, 1))[0]


def _read_grey(image: Image.Image, data: bytes) -> tuple[np.ndarray, int]:
    """Reads the values of grey pixels `[h, w]`; returns them and the largest of their type."""
    values = np.asarray(image)
    if image.format == "PPM" and image.mode == "I":  # Pillow has scaled it to 65,535
        match = _NETPBM.match(data)
        largest = int(match[4]) if match else 65535
        return np.rint(values * (largest / 65535)).astype(np.int64), largest
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return values, 1 if image.mode == "F" else 65535
    bits, sample_format = _tiff_samples(image)
    largest = 1 if image.mode == "F" else 2 ** (bits - (sample_format == 2)) - 1
    if bits == 32 and sample_format == 1:
        values = values.view(np.uint32)
    if image.tag_v2.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow respects only in 8 bits
        values = largest - values
    return values, largest


def _read_deep(data: bytes, upper: np.ndarray) -> np.ndarray:
    """Reads the values of colour of 16 bits, `[h, w, 3]`.

    Args:
      upper: their upper 8 bits, as Pillow reads them.
    """
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is not None and values.ndim == 3 and values.dtype == np.uint16:
        values = values[..., 2::-1]
        if values.shape == upper.shape and np.array_equal(values // 256, upper):
            return values
    raise ValueError("colour of 16 bits in a form that cannot be read; save it in 8 bits")


def _read_netpbm(data: bytes) -> tuple[np.ndarray, int] | None:
    """Reads a binary PGM or PPM; returns its values and the largest it states; None for others.

    Pillow takes a second for a million samples whose largest is not 255.
    """
    match = _NETPBM.match(data)
    if not match or match[1] not in b"56":
        return None
    width, height, largest = (int(match[i]) for i in (2, 3, 4))
    shape = (height, width, 3) if match[1] == b"6" else (height, width)
    kind = np.dtype(">u2" if largest > 255 else "u1")
    count = int(np.prod(shape))
    if len(data) - match.end() < count * kind.itemsize:
        raise ValueError("the file is cut short")
    return np.frombuffer(data, kind, count, match.end()).reshape(shape), largest
