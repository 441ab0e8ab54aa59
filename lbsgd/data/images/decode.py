"""Decoding of image files to pixels, with no more work than the crop needs.

Only the rows of a JPEG down to the last one of the crop are decoded. The rows above the crop are
skipped too if a restart marker follows each row of blocks, as in the files of `lbsgd prepare`.
A `Box` that is at least 2, 4 or 8 times larger than the result is decoded at half, a quarter or an
eighth of its size; a `Window` never is. Pixels are those of libjpeg-turbo's accurate inverse DCT
and its smooth ("fancy") interpolation of colour, the same as Pillow's. Files that the fast path
cannot read (CMYK, PNG, ...) are decoded by Pillow, and more than 8 bits are converted by the rule
of `lbsgd.data.images.pixels`. EXIF orientation is ignored, as in the published results on ImageNet.
"""

import io
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from lbsgd.data.images import pixels
from lbsgd.data.images.resize import Box, Region, Window, resample, resize

# Pillow warns of oddities in images that it can read.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_LOCAL = threading.local()

# Images of more than 100 million pixels are an attack or an accident.
MAX_PIXELS = 10**8
_RESTARTS = tuple(bytes((0xFF, 0xD0 + i)) for i in range(8))
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# Without the formats for which Pillow runs other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class CorruptError(ValueError):
    """An example cannot be read; the message says why."""


class JpegRows(NamedTuple):
    """Some rows of a JPEG, as a JPEG of their own.

    Attributes:
      first, last: the first row and the one after the last, in the whole image.
      surplus: whether bytes after the last row are allowed: they are there if the JPEG was cut, and
        in a few of ImageNet's files, which every decoder accepts.
    """

    data: bytes | bytearray
    first: int
    last: int
    surplus: bool


class JpegHeader(NamedTuple):
    """The contents of the frame and restart headers of a JPEG.

    Attributes:
      height, width: pixels.
      components: 1 for grey, 3 for colour, 4 for CMYK.
      in_order: whether the rows are coded one after the other, in a single sequential scan.
      frame: offset of the frame header, in bytes.
      scan: offset of the coded data of the first scan, in bytes.
      block: height and width of the smallest coded unit (MCU) in pixels.
      restart: coded units between restart markers; 0 for no markers.
    """

    height: int
    width: int
    components: int
    in_order: bool
    frame: int
    scan: int
    block: tuple[int, int]
    restart: int


def is_jpeg(data: bytes) -> bool:
    """Returns whether the bytes start like a JPEG, whatever the name of the file is."""
    return data[:3] == b"\xff\xd8\xff"


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Reads the headers of a JPEG up to its first scan.

    Raises:
      CorruptError: they are damaged or cut short.
    """
    frame, restart, at = 0, 0, 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = at
        elif marker == 0xDD:
            restart = int.from_bytes(data[at + 4 : at + 6])
        elif marker == 0xDA:
            return _read_frame(data, frame, at, restart)
        at += 2 + length
    raise CorruptError("the JPEG header is cut short or damaged")


def _read_frame(data: bytes, frame: int, scan: int, restart: int) -> JpegHeader:
    height = int.from_bytes(data[frame + 5 : frame + 7])
    width = int.from_bytes(data[frame + 7 : frame + 9])
    components = int.from_bytes(data[frame + 9 : frame + 10])
    length = int.from_bytes(data[frame + 2 : frame + 4])
    coded = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4])
    if not frame or not components or length != 8 + 3 * components or coded > len(data):
        raise CorruptError("the JPEG header is cut short or damaged")
    if not 0 < height * width <= MAX_PIXELS:
        raise CorruptError(f"a JPEG of {width} x {height} pixels")
    # One component alone is not interleaved: its unit is one block of 8 x 8.
    sampling = [data[frame + 11 + 3 * i] for i in range(components)] if components > 1 else [0x11]
    if not all(0 < s >> 4 <= 4 and 0 < s & 15 <= 4 for s in sampling):
        raise CorruptError("the JPEG header is damaged")
    block = (8 * max(s & 15 for s in sampling), 8 * max(s >> 4 for s in sampling))
    in_order = data[frame + 1] in (0xC0, 0xC1) and data[scan + 4] == components
    return JpegHeader(height, width, components, in_order, frame, coded, block, restart)


def image_size(data: bytes) -> tuple[int, int]:
    """Reads height and width of an image from the header of its file.

    Raises:
      CorruptError: the header cannot be read, or the pixels are of an unsupported type.
    """
    if is_jpeg(data):
        header = read_jpeg_header(data)
        return header.height, header.width
    with _open(data) as image:
        try:
            pixels.check_type(image)
        except ValueError as error:
            raise CorruptError(str(error)) from error
        return image.height, image.width


def decode(
    data: bytes,
    region: Region | Callable[[int, int], Region] | None = None,
    shape: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes an image, or a region of it, to RGB, and resizes it to `shape` if that is given.

    Grey, CMYK, palette and transparent images become RGB as by Pillow's `convert("RGB")`, and
    images of more than 8 bits by the rule of `lbsgd.data.images.pixels`.

    Args:
      region: a box, which is resized by the fast rule (`resize`); a window, which is resampled
        without aliasing (`resample`); a function of height and width that returns one of these; or
        None for a box around the whole image.
      shape: height and width of the result; by default those of the region.
      out: the result, uint8 `[h, w, 3]`; by default a new array.

    Raises:
      CorruptError: the file is cut short, or its data are damaged.
    """
    if not is_jpeg(data):
        return crop_and_resize(_decode_by_pillow(data), region, shape, out)
    header = read_jpeg_header(data)
    _check_whole(data, header)
    if header.components not in (1, 3):
        _check_code(data)
        return crop_and_resize(_decode_by_pillow(data), region, shape, out)
    region = _region(region, header.height, header.width)
    if isinstance(region, Window):
        part = _decode_jpeg(data, header, region.box, region.box[2:])
    else:
        part = _decode_jpeg(data, header, region, shape or region[2:])
    return _fit(part, region, shape, out)


def crop_and_resize(
    image: np.ndarray,
    region: Region | Callable[[int, int], Region] | None = None,
    shape: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Crops and resizes an image uint8 `[h, w, c]` as `decode` does with an image file."""
    region = _region(region, *image.shape[:2])
    top, left, height, width = region.box if isinstance(region, Window) else region
    return _fit(image[top : top + height, left : left + width], region, shape, out)


def _fit(
    part: np.ndarray, region: Region, shape: tuple[int, int] | None, out: np.ndarray | None
) -> np.ndarray:
    """Resizes the pixels of a region by the rule for its kind."""
    if isinstance(region, Window):
        return resample(part, region, shape, out)
    return resize(part, shape, out)


def _region(
    region: Region | Callable[[int, int], Region] | None, height: int, width: int
) -> Region:
    if isinstance(region, (Box, Window)):
        return region
    return region(height, width) if region else Box(0, 0, height, width)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (OSError, SyntaxError, ValueError, *_TOO_LARGE) as error:
        unknown = pixels.describe_unknown(data)
        raise CorruptError(unknown or "not an image that can be read") from error
    if image.width * image.height > MAX_PIXELS:
        raise CorruptError(f"an image of {image.width} x {image.height} pixels")
    return image


def _decode_by_pillow(data: bytes) -> np.ndarray:
    with _open(data) as image:
        try:
            return pixels.to_rgb(image, data)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise CorruptError(str(error)) from error


def _check_whole(data: bytes, header: JpegHeader) -> None:
    """Raises CorruptError if a JPEG lacks its end, which decoders would fill with grey."""
    if data.rfind(b"\xff\xd9") < header.scan:
        raise CorruptError("the JPEG is cut short")


def _check_code(data: bytes) -> None:
    """Raises CorruptError if the data of a CMYK JPEG are damaged, which Pillow overlooks."""
    try:
        simplejpeg.decode_jpeg(data, "CMYK")
    except ValueError as error:
        raise CorruptError(str(error)) from error


def _scale(box: Box, shape: tuple[int, int]) -> int:
    """Returns the largest of 8, 4, 2, 1 by which the box can shrink and still cover `shape`."""
    room = min(box.height / shape[0], box.width / shape[1])
    return next(s for s in (8, 4, 2, 1) if room >= s or s == 1)


def _decode_jpeg(data: bytes, header: JpegHeader, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """Decodes a box at 1, 1/2, 1/4 or 1/8 of its size; returns a view of this thread's buffer."""
    scale = _scale(box, shape)
    first, last = _rows_needed(header, box)
    part = _cut(data, header, first, last)
    image = _decode_whole(part, header.width, scale)
    top, left = (box.top - part.first) // scale, box.left // scale
    bottom = -(-(box.top + box.height - part.first) // scale)
    right = -(-(box.left + box.width) // scale)
    return image[top:bottom, left:right]


def _rows_needed(header: JpegHeader, box: Box) -> tuple[int, int]:
    """Returns the first row to decode and the one after the last, at ends of blocks.

    If colour is stored at half the height, its interpolation needs the neighbouring row of colour,
    two rows of pixels away. With that row the pixels are those of the whole image decoded.
    """
    height = header.block[0]
    margin = 2 if height > 8 else 0
    first = max((box.top - margin) // height * height, 0)
    last = -(-(box.top + box.height + margin) // height) * height
    return first, min(last, header.height)


def _cut(data: bytes, header: JpegHeader, first: int, last: int) -> JpegRows:
    """Cuts a JPEG to these rows or a few more.

    A smaller height in the frame header makes the decoder stop early. If a restart marker follows
    each row of blocks, the coded data can also start at any of them, renumbered.
    """
    if not header.in_order or (first == 0 and last == header.height):
        return JpegRows(data, 0, header.height, not header.restart)
    if header.restart and header.restart == -(-header.width // header.block[1]):
        ends = _restart_markers(data, header.scan, -(-last // header.block[0]))
        if ends:
            return JpegRows(_cut_at_markers(data, header, first, last, ends), first, last, False)
    part = bytearray(data)
    part[header.frame + 5 : header.frame + 7] = last.to_bytes(2)
    return JpegRows(part, 0, last, True)


def _restart_markers(data: bytes, scan: int, rows: int) -> list[int]:
    """Finds where the coded data of each row of blocks end; [] if a marker is missing.

    Within coded data 0xFF is always followed by 0, so what looks like a marker is one.
    """
    ends, at = [], scan
    for row in range(rows - 1):
        at = data.find(_RESTARTS[row % 8], at)
        if at < 0:
            return []
        ends.append(at)
        at += 2
    # The last row ends at a marker too, or else at the end of the image.
    at = data.find(_RESTARTS[(rows - 1) % 8], at)
    return [*ends, at if at >= 0 else data.rfind(b"\xff\xd9")]


def _cut_at_markers(
    data: bytes, header: JpegHeader, first: int, last: int, ends: list[int]
) -> bytearray:
    row = first // header.block[0]
    start = ends[row - 1] + 2 if row else header.scan
    part = bytearray(data[: header.scan])
    part[header.frame + 5 : header.frame + 7] = (last - first).to_bytes(2)
    part += data[start : ends[-1]]
    part += b"\xff\xd9"
    shift = header.scan - start
    for number, end in enumerate(ends[row:-1]):
        part[end + shift + 1] = 0xD0 + number % 8
    return part


def _buffer(size: int) -> np.ndarray:
    """Returns this thread's buffer; the system would have to clear new memory for each image."""
    buffer: np.ndarray | None = getattr(_LOCAL, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _LOCAL.buffer = np.empty(size, np.uint8)
    return buffer


def _decode_whole(part: JpegRows, width: int, scale: int) -> np.ndarray:
    """Decodes a whole JPEG at 1/scale of its size, into this thread's buffer."""
    height = part.last - part.first
    buffer = _buffer(height * width * 3)
    height, width = -(-height // scale), -(-width // scale)
    try:
        simplejpeg.decode_jpeg(part.data, min_height=height, min_width=width, buffer=buffer)
    except ValueError as error:
        # libjpeg reports its first warning only. Before a marker of another kind than 0xd this one
        # might hide others that matter.
        if not part.surplus or "extraneous bytes before marker 0xd" not in str(error):
            raise CorruptError(str(error)) from error
    return buffer[: height * width * 3].reshape(height, width, 3)
