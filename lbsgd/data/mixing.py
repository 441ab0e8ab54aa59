"""mixup, CutMix and random erasing: random numbers drawn on the host, applied on the devices.

A few numbers for each example, keyed by (seed, epoch, example), travel with the batch. The pixels
change on the devices (`lbsgd.step.pixels`: `erase`, then `mix`), within the n examples of one
worker. Row i is mixed with row i+1, the last with the first: the rows of a worker are in random
order already. A worker of one example mixes it with itself, which changes nothing. The loss of a
mixed example is

    share * cross_entropy(logits, label) + (1 - share) * cross_entropy(logits, partner(label))

Running mixup mixes it with the minibatch of the update before instead: `step.running_mixup`.
"""

import dataclasses

import ml_collections
import numpy as np

from lbsgd.data.keys import ERASED_AREA, ERASED_ASPECT
from lbsgd.data.order import random_below, uniform

# The paper tries until a box fits. On a square image 1 in 23 does not, so that ten tries, which are
# all drawn at once, fail once in 10^13.
ERASING_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Draws how each example is mixed with its partner, and which box of it is erased.

    With both mixup and CutMix on, an example takes either with probability 1/2 (as in timm).

    Attributes:
      seed: of the run.
      mixup: alpha of Beta(alpha, alpha) in mixup (Zhang et al. 2018); 0 for no mixup.
      cutmix: the same for CutMix (Yun et al. 2019; 1 in the paper).
      erasing: probability of random erasing (Zhong et al. 2017; 0.5 in the paper).
      image_shape: `(h, w, c)` of the images as the network sees them.
      erased_area: least and greatest share of the image that is erased.
      erased_aspect: least and greatest height / width of the box.
      erased_transpose: whether the two are exchanged, half of the time.
      running: alpha of Beta(alpha, alpha) in running mixup (Osawa et al. 2020; 0.4 there and more);
        0 for none.
    """

    seed: int
    mixup: float
    cutmix: float
    erasing: float
    image_shape: tuple[int, int, int]
    erased_area: tuple[float, float] = ERASED_AREA
    erased_aspect: tuple[float, float] = ERASED_ASPECT
    erased_transpose: bool = False
    running: float = 0.0

    @property
    def active(self) -> bool:
        """Tells whether any of them is on."""
        return bool(self.mixup or self.cutmix or self.erasing or self.running)

    def of_size(self, size: tuple[int, int]) -> "Mixing":
        """Returns that of images of another size: boxes lie where they would, in proportion."""
        return dataclasses.replace(self, image_shape=(*size, self.image_shape[2]))

    def draw(self, epochs: np.ndarray, examples: np.ndarray) -> dict[str, np.ndarray]:
        """Draws the numbers that `mix` and `erase` need.

        Args:
          epochs, examples: integers `[N]`.

        Returns:
          mix_share: share of the example's own label, float32 `[N]`; the rest is its partner's.
          mix_box: top, left, height and width of the box that CutMix takes from the partner, int32
            `[N, 4]`; height 0 where mixup blends the two instead. Only with CutMix.
          running_share: the example's own share in running mixup, at least 1/2, float32 `[N]`. Only
            with running mixup.
          erase_box: the erased box, int32 `[N, 4]`; height 0 for none. Only with random erasing.
        """
        drawn: dict[str, np.ndarray] = {}
        if self.mixup or self.cutmix:
            share, cut = self._share(epochs, examples)
            if self.cutmix:
                drawn["mix_box"] = box = self._cutmix_box(share, cut, epochs, examples)
                area = box[:, 2] * box[:, 3] / (self.image_shape[0] * self.image_shape[1])
                share = np.where(cut, 1.0 - area, share)
            drawn["mix_share"] = share.astype(np.float32)
        if self.running:
            rank = uniform(self.seed, "running mixup share", epochs, examples, 1)[:, 0]
            share = _beta_quantile(self.running, rank)
            drawn["running_share"] = np.maximum(share, 1.0 - share).astype(np.float32)
        if self.erasing:
            drawn["erase_box"] = self._erase_box(epochs, examples)
        return drawn

    def _share(self, epochs: np.ndarray, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draws lambda ~ Beta(alpha, alpha), and whether it is for CutMix, each `[N]`."""
        cut = np.full(len(examples), not self.mixup)
        if self.mixup and self.cutmix:
            cut = random_below(2, self.seed, "mix switch", epochs, examples) == 1
        alpha = np.where(cut, self.cutmix, self.mixup)
        rank = uniform(self.seed, "mix share", epochs, examples, 1)[:, 0]
        return _beta_quantile(alpha, rank), cut

    def _cutmix_box(
        self, share: np.ndarray, cut: np.ndarray, epochs: np.ndarray, examples: np.ndarray
    ) -> np.ndarray:
        """Draws the boxes of equation 2 of Yun et al., rounded and clipped as in their code.

        A box has sqrt(1 - lambda) of the height and of the width, around a uniform centre.
        """
        side = np.sqrt(1.0 - share)
        starts, sizes = [], []
        for axis, length in zip(("row", "column"), self.image_shape):
            centre = random_below(length, self.seed, f"cutmix {axis}", epochs, examples)
            half = (length * side).astype(np.int64) // 2
            start, stop = np.maximum(centre - half, 0), np.minimum(centre + half, length)
            starts.append(start)
            sizes.append(stop - start)
        return _boxes(cut, *starts, *sizes)

    def _erase_box(self, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Draws the boxes of algorithm 1 of Zhong et al.: the first size that fits, anywhere."""
        height, width, _ = self.image_shape
        tries = uniform(self.seed, "erase size", epochs, examples, 2 * ERASING_TRIES)
        area = height * width * _between(self.erased_area, tries[:, ::2])
        aspect = _between(self.erased_aspect, tries[:, 1::2])
        if self.erased_transpose:
            lying = random_below(2, self.seed, "erase transpose", epochs, examples) == 1
            aspect = np.where(lying[:, None], 1 / aspect, aspect)
        heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (heights <= height) & (widths <= width)
        first = np.arange(len(fits)), np.argmax(fits, axis=1)
        whether, down, across = uniform(self.seed, "erase where", epochs, examples, 3).T
        erased = fits[first] & (whether < self.erasing)
        top = down * (height + 1 - heights[first])
        left = across * (width + 1 - widths[first])
        return _boxes(erased, top, left, heights[first], widths[first])


def mixing_of(
    data: ml_collections.ConfigDict, seed: int, image_shape: tuple[int, int, int]
) -> Mixing:
    """Makes that of a config's `data`."""
    return Mixing(
        seed=seed,
        mixup=data.mixup,
        cutmix=data.cutmix,
        running=data.running_mixup,
        erasing=data.erasing,
        image_shape=image_shape,
        erased_area=data.erasing_area,
        erased_aspect=data.erasing_aspect,
        erased_transpose=data.erasing_transpose,
    )


def _between(limits: tuple[float, float], fraction: np.ndarray) -> np.ndarray:
    return limits[0] + (limits[1] - limits[0]) * fraction


def _beta_quantile(alpha: float | np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Computes the quantiles of Beta(alpha, alpha) at these ranks, `[N]`."""
    from scipy.special import betaincinv  # slow to import

    quantiles: np.ndarray = betaincinv(alpha, alpha, rank)
    return quantiles


def _boxes(valid: np.ndarray, *sides: np.ndarray) -> np.ndarray:
    """Stacks four arrays `[N]` to int32 `[N, 4]`, all zero where not valid."""
    boxes = np.stack(sides, axis=1).astype(np.int32)
    return np.where(valid[:, None], boxes, np.int32(0))
