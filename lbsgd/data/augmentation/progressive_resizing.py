"""Progressive resizing: small images first, and whole ones from an epoch on."""

import dataclasses

import numpy as np

from lbsgd.data.augmentation.options import check_number, check_whole

# Of a side: what is smaller holds nothing to be learned.
LEAST_SCALE = 0.01


@dataclasses.dataclass(frozen=True)
class ProgressiveResizing:
    """Says how large images are in an epoch, and leaves their pixels as they are.

    Attributes:
      shape: `(h, w)` of whole images.
      start_scale: the share of both sides up to `start_epoch`; it grows linearly from there.
      end_epoch: from which on images are whole.
      multiple: of pixels, to the nearest of which sides are rounded until then.
    """

    shape: tuple[int, int]
    start_scale: float
    start_epoch: float
    end_epoch: float
    multiple: int

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Returns the images."""
        return images

    def image_size(self, epoch: float) -> tuple[int, int]:
        """Returns `(h, w)` of the images of an epoch, the first of which is 0."""
        if epoch >= self.end_epoch:
            return self.shape
        scale = self.start_scale
        if epoch > self.start_epoch:
            done = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
            scale += (1.0 - scale) * done
        height, width = (
            min(max(round(scale * side / self.multiple), 1) * self.multiple, side)
            for side in self.shape
        )
        return height, width


def progressive_resizing(
    image_shape: tuple[int, int, int],
    *,
    end_epoch: float,
    start_epoch: float = 0.0,
    start_scale: float = 0.5,
    multiple: int = 0,
) -> ProgressiveResizing:
    """Makes progressive resizing: images grow from an epoch to another, in steps.

    Args:
      image_shape: `(h, w, c)`.
      end_epoch: from which on images are whole.
      start_epoch: up to which they are smallest.
      start_scale: the share that they then have of both sides.
      multiple: of pixels, to which sides are rounded; 0 for an eighth of the shorter one.

    Raises:
      ConfigError: an option out of its range.
    """
    check_number("start_epoch", start_epoch, 0)
    check_number("end_epoch", end_epoch, start_epoch)
    check_number("start_scale", start_scale, LEAST_SCALE, 1)
    shape = image_shape[:2]
    check_whole("multiple", multiple, 0, min(shape))
    multiple = multiple or max(1, min(shape) // 8)
    return ProgressiveResizing(shape, start_scale, start_epoch, end_epoch, multiple)
