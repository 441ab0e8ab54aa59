"""RandAugment and TrivialAugment, as torchvision has them: no interpolation, black outside.

Both take of each image operations at random, with a magnitude of 31 that lie at equal distances
between nothing and the most; the tables are the papers'.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lbsgd.data.augmentation.operations import OPERATIONS
from lbsgd.data.augmentation.options import check_channels, check_whole
from lbsgd.data.order import random_below

BINS = 31
_COLORS = ("Brightness", "Color", "Contrast", "Sharpness")
_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_COLORS)


@dataclasses.dataclass(frozen=True)
class Space:
    """Holds what the operations take.

    Attributes:
      magnitudes: by operation, 31 of them; one that takes none has zeros.
    """

    magnitudes: Mapping[str, np.ndarray]

    @classmethod
    def up_to(cls, most: Mapping[str, float], least_bits: int) -> "Space":
        """Makes magnitudes from 0 to the most.

        Posterize goes from 8 bits down to the least, solarize from 255 down to 0.
        """
        steps = np.arange(BINS)
        found = {name: np.linspace(0.0, most.get(name, 0.0), BINS) for name in OPERATIONS}
        found["Posterize"] = 8 - np.rint(steps * ((8 - least_bits) / (BINS - 1)))
        found["Solarize"] = np.linspace(255.0, 0.0, BINS)
        return cls(found)

    def apply(self, image: np.ndarray, operation: int, bin_: int, negative: bool) -> np.ndarray:
        """Applies one of the operations to an image uint8 `[h, w, c]`, by number."""
        name = list(OPERATIONS)[operation]
        magnitude = float(self.magnitudes[name][bin_])
        return OPERATIONS[name](image, -magnitude if negative and name in _SIGNED else magnitude)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Applies operations that are drawn for each example.

    Attributes:
      name: of the policy, which keys what is drawn.
      num_ops: operations for each image, one after the other.
      bin: of the magnitudes; None to draw it.
    """

    name: str
    seed: int
    space: Space
    num_ops: int
    bin: int | None

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Draws operation, bin of the magnitude, and whether it is negative: `[num_ops, N, 3]`."""

        def below(bound: int, what: str) -> np.ndarray:
            return random_below(bound, self.seed, f"{self.name} {what}", epochs, examples)

        fixed = np.full(len(examples), self.bin or 0)
        drawn = [
            (
                below(len(OPERATIONS), f"operation {i}"),
                fixed if self.bin is not None else below(BINS, f"magnitude {i}"),
                below(2, f"sign {i}"),
            )
            for i in range(self.num_ops)
        ]
        return np.moveaxis(np.array(drawn), 1, 2)

    def __call__(self, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Augments images uint8 `[N, h, w, c]` in place; epochs and examples are `[N]`."""
        for layer in self.draw(epochs, examples).tolist():
            for image, (operation, bin_, negative) in zip(images, layer):
                image[:] = self.space.apply(image, operation, bin_, bool(negative))
        return images


def rand_augment(
    seed: int, image_shape: tuple[int, int, int], *, num_ops: int = 2, magnitude: int = 9
) -> Policy:
    """Makes RandAugment (Cubuk et al. 2019): N operations of one magnitude M.

    Args:
      seed: of the run.
      image_shape: `(h, w, c)`.
      num_ops: N.
      magnitude: M, from 0 to 30.

    Raises:
      ConfigError: an option out of its range, or images of other than 1 or 3 channels.
    """
    check_whole("num_ops", num_ops, 1, len(OPERATIONS))
    check_whole("magnitude", magnitude, 0, BINS - 1)
    check_channels("rand_augment", image_shape)
    # A share of the side: 150 of the 331 pixels that images had in AutoAugment.
    height, width = (150.0 / 331.0 * side for side in image_shape[:2])
    geometry = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": width, "TranslateY": height}
    space = Space.up_to({**geometry, "Rotate": 30.0, **_colors(0.9)}, least_bits=4)
    return Policy("rand_augment", seed, space, num_ops, magnitude)


def trivial_augment(seed: int, image_shape: tuple[int, int, int]) -> Policy:
    """Makes TrivialAugment (Mueller and Hutter 2021), Wide: one operation of any magnitude.

    Args:
      seed: of the run.
      image_shape: `(h, w, c)`.

    Raises:
      ConfigError: images of other than 1 or 3 channels.
    """
    check_channels("trivial_augment", image_shape)
    geometry = {"ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0}
    space = Space.up_to({**geometry, "Rotate": 135.0, **_colors(0.99)}, least_bits=2)
    return Policy("trivial_augment", seed, space, 1, None)


def _colors(most: float) -> dict[str, float]:
    return dict.fromkeys(_COLORS, most)
