"""Augmentation of small images, keyed by (seed, epoch, example).

Whoever loads an example, and in whatever batch, sees the same crop and flip.
"""

import dataclasses

import numpy as np

from lbsgd.data.order import random_below


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

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Augments images `[N, h, w, c]`, of the given epochs and examples, each `[N]`."""
        if self.padding:
            images = self._crop(images, epochs, examples)
        if self.flip:
            flipped = random_below(2, self.seed, "flip", epochs, examples) == 1
            images = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
        return images

    def _crop(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        margin = (self.padding, self.padding)
        padded = np.pad(images, ((0, 0), margin, margin, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], (1, 2))
        top, left = (
            random_below(2 * self.padding + 1, self.seed, axis, epochs, examples)
            for axis in ("crop top", "crop left")
        )
        crops = windows[np.arange(len(images)), top, left]  # [N, c, h, w]
        return np.ascontiguousarray(np.moveaxis(crops, 1, -1))
