"""The gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

A gradient over B examples has E|G_B|^2 = |G|^2 + tr(Sigma) / B, where Sigma is the covariance of
one example's gradient. Two sizes B tell the two apart, and B_simple = tr(Sigma) / |G|^2 is the
minibatch whose noise is as large as its gradient.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# The names of the raw estimates in metrics.jsonl.
SQUARE, TRACE = "gradient_square", "gradient_covariance_trace"


class Estimate(NamedTuple):
    """|G|^2 and tr(Sigma), whose expectations are the true ones; a single |G|^2 may be negative."""

    gradient_square: float
    covariance_trace: float

    @property
    def noise_scale(self) -> float:
        """B_simple, in examples; infinite where the gradient is lost in the noise."""
        if self.gradient_square <= 0:
            return math.inf
        return self.covariance_trace / self.gradient_square


def estimate(small_square: float, small: int, large_square: float, large: int) -> Estimate:
    """The unbiased estimates from two sizes of batch (McCandlish et al., appendix A.1).

    Args:
      small_square: |G_s|^2 of `small` examples, e.g. the mean over workers of n.
      large_square: |G_b|^2 of `large` examples, e.g. of the mean over all workers.
    """
    return Estimate(
        (large * large_square - small * small_square) / (large - small),
        (small_square - large_square) / (1 / small - 1 / large),
    )


class Smoothed(NamedTuple):
    """Exponential averages of numerator and denominator apart, for a mean of ratios is biased.

    Attributes:
      sums: each estimate times (1 - smoothing) times smoothing to the power of its age.
      weight: the sum of these factors, 1 - smoothing^t.
    """

    sums: Estimate = Estimate(0.0, 0.0)
    weight: float = 0.0

    def add(self, new: Estimate, smoothing: float) -> "Smoothed":
        """With one more estimate; one that is not finite is left out."""
        if not all(map(math.isfinite, new)):
            return self
        sums = (smoothing * old + (1 - smoothing) * x for old, x in zip(self.sums, new))
        return Smoothed(Estimate(*sums), smoothing * self.weight + (1 - smoothing))

    @property
    def mean(self) -> Estimate:
        """Corrected for the bias towards 0 that the first averages have."""
        if not self.weight:
            return Estimate(math.nan, math.nan)
        return Estimate(*(x / self.weight for x in self.sums))


def smoothed(metrics: Iterable[Mapping[str, Any]], smoothing: float) -> Smoothed:
    """The averages over the raw estimates in the lines of a metrics.jsonl."""
    result = Smoothed()
    for line in metrics:
        if line.get(SQUARE) is not None and line.get(TRACE) is not None:
            result = result.add(Estimate(line[SQUARE], line[TRACE]), smoothing)
    return result


def advice(mean: Estimate, batch_size: int, worker_batch_size: int) -> str:
    """What the noise scale says of the batch size, in a line.

    At B examples a run takes 1 + B_noise/B times the fewest updates and 1 + B/B_noise times the
    fewest examples that it could (with B_crit ~ B_noise), so twice both at B_noise.
    """
    noise = mean.noise_scale
    text = f"|G|^2 {mean.gradient_square:.4g}, tr(Sigma) {mean.covariance_trace:.4g}"
    if not (math.isfinite(noise) and noise > 0):
        return f"gradient noise scale: no estimate yet ({text})"
    suggested = max(1, round(noise / worker_batch_size)) * worker_batch_size
    return (
        f"gradient noise scale {noise:,.0f} ({text}): a batch_size of {suggested:,} takes about "
        f"twice the fewest updates and twice the fewest examples, {batch_size:,} takes "
        f"{1 + noise / batch_size:.3g} and {1 + batch_size / noise:.3g} times"
    )
