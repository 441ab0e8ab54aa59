"""From the bytes of an image file to pixels, doing no more of the work than the crop needs.

Of a JPEG only the rows down to the crop's last are decoded (from its first, where the file has
restart markers at the ends of its rows of blocks, as those of `lbsgd prepare` do); and a `Box`
at half, a quarter or an eighth of the size where it is at least that much larger than what is
wanted, a `Window` never. Pixels are those of libjpeg-turbo's accurate inverse DCT and its smooth
("fancy") interpolation of colour, which are Pillow's too. Whatever its fast path does not take
(CMYK, PNG, ...) goes through Pillow, and what has more than 8 bits through the rule of
`lbsgd.data.images.pixels`. EXIF orientation is ignored, as the published results on ImageNet do.
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

# Pillow warns of oddities of images that it reads all the same.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_LOCAL = threading.local()

# Larger is an attack or an accident: 100 million pixels.
MAX_PIXELS = 10**8
_RESTARTS = tuple(bytes((0xFF, 0xD0 + i)) for i in range(8))
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# Not those that Pillow runs other programs for.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class CorruptError(ValueError):
    """An example that cannot be read, and why."""


class Part(NamedTuple):
    """Some rows of a JPEG, as a JPEG.

    Attributes:
      first, last: the first row and the one after the last, of the whole image.
      surplus: whether bytes left over after the last row are no damage: where the JPEG was cut, and
        in a few of ImageNet's that every decoder takes.
    """

    data: bytes | bytearray
    first: int
    last: int
    surplus: bool


class JpegHeader(NamedTuple):
    """What the frame and restart headers of a JPEG say.

    Attributes:
      height, width: pixels.
      components: 1 grey, 3 colour, 4 CMYK.
      in_order: whether the rows are coded one after the other, in a single sequential scan.
      frame: where the frame header starts.
      scan: where the coded data of the first scan start.
      block: height and width of the smallest coded unit (MCU) in pixels.
      restart: coded units between restart markers; 0 for none.
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
    """Whether the bytes start like a JPEG, whatever the file is called."""
    return data[:3] == b"\xff\xd8\xff"


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Walks the segments up to the first scan.

    Raises:
      CorruptError: they do not lead there.
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
    """Height and width of an encoded image, from its header.

    Raises:
      CorruptError: there is none, or it is of a type of pixels that cannot be read.
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
    """Decodes an image, or a region of it, to RGB; resized to `shape` if that is given.

    Grey, CMYK, palette and transparent images become RGB as Pillow's `convert("RGB")` has it, and
    more than 8 bits as `lbsgd.data.images.pixels` says.

    Args:
      region: a box, which is resized by the fast rule (`resize`), or a window, which is resampled
        without aliasing (`resample`); or what makes one from height and width; None for a box of
        all of the image.
      out: where to put it, uint8 `[h, w, 3]`; by default a new array.

    Raises:
      CorruptError: the file is cut short, or its code is damaged.
    """
    if not is_jpeg(data):
        return see(_decode_by_pillow(data), region, shape, out)
    header = read_jpeg_header(data)
    _check_whole(data, header)
    if header.components not in (1, 3):
        _check_code(data)
        return see(_decode_by_pillow(data), region, shape, out)
    region = _region(region, header.height, header.width)
    if isinstance(region, Window):
        part = _decode_jpeg(data, header, region.box, region.box[2:])
    else:
        part = _decode_jpeg(data, header, region, shape or region[2:])
    return _fit(part, region, shape, out)


def see(
    image: np.ndarray,
    region: Region | Callable[[int, int], Region] | None = None,
    shape: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """`decode` of an image uint8 `[h, w, c]` that is decoded already."""
    region = _region(region, *image.shape[:2])
    top, left, height, width = region.box if isinstance(region, Window) else region
    return _fit(image[top : top + height, left : left + width], region, shape, out)


def _fit(
    part: np.ndarray, region: Region, shape: tuple[int, int] | None, out: np.ndarray | None
) -> np.ndarray:
    """The pixels of a region, by the rule for its kind."""
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
    """Raises CorruptError for a JPEG without its end, which decoders fill with grey."""
    if data.rfind(b"\xff\xd9") < header.scan:
        raise CorruptError("the JPEG is cut short")


def _check_code(data: bytes) -> None:
    """Raises CorruptError for a CMYK JPEG with damaged code, which Pillow overlooks."""
    try:
        simplejpeg.decode_jpeg(data, "CMYK")
    except ValueError as error:
        raise CorruptError(str(error)) from error


def _scale(box: Box, shape: tuple[int, int]) -> int:
    """The largest of 8, 4, 2, 1 by which the box can shrink and still be as large as `shape`."""
    room = min(box.height / shape[0], box.width / shape[1])
    return next(s for s in (8, 4, 2, 1) if room >= s or s == 1)


def _decode_jpeg(data: bytes, header: JpegHeader, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """The box at 1, 1/2, 1/4 or 1/8 of its size, a view of this thread's buffer."""
    scale = _scale(box, shape)
    first, last = _rows_needed(header, box)
    part = _cut(data, header, first, last)
    image = _decode_whole(part, header.width, scale)
    top, left = (box.top - part.first) // scale, box.left // scale
    bottom = -(-(box.top + box.height - part.first) // scale)
    right = -(-(box.left + box.width) // scale)
    return image[top:bottom, left:right]


def _rows_needed(header: JpegHeader, box: Box) -> tuple[int, int]:
    """The first and the last+1 row to decode, at ends of blocks.

    Where colour is stored at half the height its interpolation looks at the neighbouring row of
    colour, two rows of pixels away: with it the pixels are those of the whole image decoded.
    """
    height = header.block[0]
    margin = 2 if height > 8 else 0
    first = max((box.top - margin) // height * height, 0)
    last = -(-(box.top + box.height + margin) // height) * height
    return first, min(last, header.height)


def _cut(data: bytes, header: JpegHeader, first: int, last: int) -> Part:
    """A JPEG of these rows or a few more.

    The frame header is told another height, and the decoder stops there. With a restart marker
    after each row of blocks the coded data can also start at any of them, renumbered.
    """
    if not header.in_order or (first == 0 and last == header.height):
        return Part(data, 0, header.height, not header.restart)
    if header.restart and header.restart == -(-header.width // header.block[1]):
        ends = _restart_markers(data, header.scan, -(-last // header.block[0]))
        if ends:
            return Part(_cut_at_markers(data, header, first, last, ends), first, last, False)
    part = bytearray(data)
    part[header.frame + 5 : header.frame + 7] = last.to_bytes(2)
    return Part(part, 0, last, True)


def _restart_markers(data: bytes, scan: int, rows: int) -> list[int]:
    """Where the coded data of each of so many rows of blocks end; [] where a marker is missing.

    Within coded data 0xFF is always followed by 0, so what looks like a marker is one.
    """
    ends, at = [], scan
    for row in range(rows - 1):
        at = data.find(_RESTARTS[row % 8], at)
        if at < 0:
            return []
        ends.append(at)
        at += 2
    # The last row of an image ends with it.
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
    """This thread's memory to decode into: fresh memory would have to be cleared each time."""
    buffer: np.ndarray | None = getattr(_LOCAL, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _LOCAL.buffer = np.empty(size, np.uint8)
    return buffer


def _decode_whole(part: Part, width: int, scale: int) -> np.ndarray:
    """All of a JPEG at 1/scale of its size, in this thread's buffer."""
    height = part.last - part.first
    buffer = _buffer(height * width * 3)
    height, width = -(-height // scale), -(-width // scale)
    try:
        simplejpeg.decode_jpeg(part.data, min_height=height, min_width=width, buffer=buffer)
    except ValueError as error:
        # libjpeg tells its first complaint only: before a marker of another kind this one would
        # hide those that matter.
        if not part.surplus or "extraneous bytes before marker 0xd" not in str(error):
            raise CorruptError(str(error)) from error
    return buffer[: height * width * 3].reshape(height, width, 3)
