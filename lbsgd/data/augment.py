"""Data augmentation on the host: padded crop, flip and colours of whole batches.

Random numbers are keyed by (seed, epoch, example), so an example gets the same crop, flip and
colours whichever process loads it, in whichever batch. The view (`lbsgd.data.views`) comes first:
it works on one image at a time, so that a JPEG is decoded no further than the view needs.
"""

import dataclasses

import cv2
import numpy as np

from lbsgd.data.order import random_below, uniform


@dataclasses.dataclass(frozen=True)
class CropAndFlip:
    """Pads images with zeros, crops them back at random, and flips half of them left to right.

    The augmentation of He et al. 2015, section 4.2 (padding 4 there).

    Attributes:
      seed: of the run.
      padding: pixels on each side; 0 for no crop.
      flip: whether to flip.
    """

    seed: int
    padding: int = 0
    flip: bool = False

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> None:
        """Augments images uint8 `[N, h, w, c]` in place; epochs and examples are `[N]`."""
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


# Principal components of the RGB pixels of ImageNet, divided by 255 (fb.resnet.torch, after
# Krizhevsky et al. 2012).
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
GREY = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class Color:
    """Changes brightness, contrast and saturation, and adds PCA lighting.

    Each change is an affine map of RGB, and so is their product. Pixels are rounded and clipped to
    0..255 once, not after each change, so the order of the three makes no difference. The maps are
    those of fb.resnet.torch and torchvision; the lighting is that of Krizhevsky et al. 2012,
    section 4.1.

    Attributes:
      seed: of the run.
      jitter: j of brightness, contrast and saturation; factors are uniform in 1-j..1+j.
      lighting: standard deviation of the amount of each principal component (0.1 in that paper).
    """

    seed: int
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lighting: float = 0.0

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> None:
        """Changes images uint8 `[N, h, w, 3]` in place; epochs and examples are `[N]`."""
        if not any(self.jitter) and not self.lighting:
            return
        means = np.array([cv2.mean(image)[:3] for image in images])
        for image, matrix in zip(images, self.maps(means, epochs, examples)):
            cv2.transform(image, matrix, dst=image)

    def maps(self, means: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Computes the affine map (3x3 matrix, then offset) of each image: float64 `[N, 3, 4]`.

        Args:
          means: mean RGB of each image, `[N, 3]`; contrast is changed around their grey.
        """
        from scipy.special import ndtri  # slow to import

        draws = uniform(self.seed, "color", epochs, examples, 6)
        factors = 1.0 + np.array(self.jitter) * (2.0 * draws[:, :3] - 1.0)
        brightness, contrast, saturation = factors.T[..., None, None]  # each [N, 1, 1]
        to_grey = np.tile(GREY, (3, 1))
        matrix = saturation * np.eye(3) + (1.0 - saturation) * to_grey
        offset = (1.0 - contrast[..., 0]) * (means @ GREY)[:, None]
        amounts = self.lighting * ndtri(draws[:, 3:] + 2.0**-54)  # ndtri(0) is -inf
        light = 255.0 * (amounts * EIGENVALUES) @ EIGENVECTORS.T
        maps = np.empty((len(draws), 3, 4))
        maps[:, :, :3] = brightness * contrast * matrix
        maps[:, :, 3] = brightness[..., 0] * offset + light
        return maps
