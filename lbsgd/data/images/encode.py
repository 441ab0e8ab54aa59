"""Encoding of images by `lbsgd prepare`: the file unchanged, a smaller JPEG, or pixels."""

import dataclasses
import io

import numpy as np
from PIL import Image

from lbsgd.data.images.decode import CorruptError, decode
from lbsgd.system.errors import ConfigError

DEFAULT_QUALITY = 90
# Largest side of a JPEG in pixels, by libjpeg.
MAX_JPEG = 65_500


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Says how images are stored: by default files unchanged, and arrays as pixels.

    Attributes:
      max_side: shrinks the longer side to this many pixels; 0 for no limit. Nothing is enlarged.
      short_side: shrinks the shorter side to this many pixels; 0 for no limit.
      quality: encodes as JPEG of this quality, 1 to 100; 0 for 90 if files are shrunk.
      raw: stores pixels instead of a JPEG.
    """

    max_side: int = 0
    short_side: int = 0
    quality: int = 0
    raw: bool = False

    def __call__(
        self, image: np.ndarray | bytes
    ) -> tuple[np.ndarray | bytes, tuple[int, int, int]]:
        """Encodes an image; returns pixels or the bytes of a file, and its decoded `(h, w, c)`.

        Args:
          image: pixels, uint8 `[h, w, c]`, or the bytes of an image file. A file is always decoded,
            to check that it can be.

        Raises:
          CorruptError: it cannot be decoded.
        """
        is_file = isinstance(image, bytes)
        pixels = decode(image) if isinstance(image, bytes) else image
        height, width, channels = pixels.shape
        if is_file and not (self.raw or self.quality or self.max_side or self.short_side):
            return image, (height, width, channels)
        pixels = shrink(pixels, self.size(height, width))
        height, width, channels = pixels.shape
        if self.raw or not (is_file or self.quality):
            return pixels, (height, width, channels)
        return jpeg(pixels, self.quality or DEFAULT_QUALITY), (height, width, 3)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width to which an image of this size is shrunk."""
        side = self.max_side or self.short_side
        now = max(height, width) if self.max_side else min(height, width)
        if not side or now <= side:
            return height, width
        return max(1, round(height * side / now)), max(1, round(width * side / now))


def shrink(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrinks pixels uint8 `[h, w, c]` to `size` without aliasing (Lanczos)."""
    if pixels.shape[:2] == size:
        return pixels
    height, width = size
    # reducing_gap: an image that shrinks by six or more is averaged first, to three times the size.
    image = _as_pillow(pixels).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(image).reshape(height, width, pixels.shape[2])


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encodes pixels uint8 `[h, w, c]` as a JPEG, with colour at half the size.

    A restart marker follows each row of blocks, so that `lbsgd.data.images.decode` can start there.

    Raises:
      CorruptError: the image is too large for a JPEG.
    """
    height, width, _ = pixels.shape
    if max(height, width) > MAX_JPEG:
        raise CorruptError(f"{width} x {height} pixels are too many for a JPEG")
    file = io.BytesIO()
    _as_pillow(pixels).save(
        file, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_rows=1
    )
    return file.getvalue()


def _as_pillow(pixels: np.ndarray) -> Image.Image:
    channels = pixels.shape[2]
    if channels not in (1, 3):
        raise ConfigError(
            f"images of {channels} channels can neither be resized nor be JPEGs; keep them as they "
            "are"
        )
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
