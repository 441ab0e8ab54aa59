"""Estimates the gradient noise scale (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

A gradient over B examples has E|G_B|^2 = |G|^2 + tr(Sigma) / B, where Sigma is the covariance of
one example's gradient. Two sizes B tell the two apart, and B_simple = tr(Sigma) / |G|^2 is the
minibatch whose noise is as large as its gradient.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lbsgd.system.text import pluralize

# The names of the raw estimates in metrics.jsonl.
SQUARE, TRACE = "gradient_square", "gradient_covariance_trace"
# And of their averages, with the standard error of the first.
MEAN_SQUARE, MEAN_TRACE = f"{SQUARE}_mean", f"{TRACE}_mean"
ERROR = f"{SQUARE}_error"

# An average is told from 0 from so many of its standard errors on. Of five normal
# estimates, the default window, luck alone passes them on one side in 6% of cases.
ERRORS = 2.0


class Estimate(NamedTuple):
    """Holds |G|^2 and tr(Sigma), whose expectations are the true ones.

    A single |G|^2 may be negative.
    """

    gradient_square: float
    covariance_trace: float

    @property
    def noise_scale(self) -> float:
        """Computes B_simple, in examples; infinite where the gradient is lost in the noise."""
        if self.gradient_square <= 0:
            return math.inf
        return self.covariance_trace / self.gradient_square


def estimate(small_square: float, small: int, large_square: float, large: int) -> Estimate:
    """Estimates both without bias from two sizes of batch (McCandlish et al., appendix A.1).

    Args:
      small_square: |G_s|^2 of `small` examples, e.g. the mean over workers of n.
      large_square: |G_b|^2 of `large` examples, e.g. of the mean over all workers.
    """
    # Not clipped at 0, which would bias the averages.
    return Estimate(
        (large * large_square - small * small_square) / (large - small),
        (small_square - large_square) / (1 / small - 1 / large),
    )


class Average(NamedTuple):
    """Averages numerator and denominator apart, for a mean of ratios is biased.

    Attributes:
      mean: of the estimates.
      error: the standard error of its |G|^2, from the scatter of the estimates. It holds the fall
        of |G|^2 within the window too. NaN where there are fewer than two.
    """

    mean: Estimate
    error: float

    @property
    def least(self) -> float:
        """Computes the noise scale where |G|^2 is two standard errors above its average."""
        square = self.mean.gradient_square + ERRORS * self.error
        return Estimate(square, self.mean.covariance_trace).noise_scale

    @property
    def most(self) -> float:
        """Computes the same where it is below; infinite where |G|^2 is not clearly positive."""
        square = self.mean.gradient_square - ERRORS * self.error
        return Estimate(square, self.mean.covariance_trace).noise_scale


class Recent(NamedTuple):
    """Holds the last measurements: a window, for |G|^2 falls by powers of ten in training.

    An exponential average cannot fall faster than its own weights do, however short its memory is:
    values of long ago would win.

    Attributes:
      epochs: when each was.
      estimates: the oldest first.
    """

    epochs: tuple[float, ...] = ()
    estimates: tuple[Estimate, ...] = ()

    def add(self, epoch: float, new: Estimate, window: int) -> "Recent":
        """Adds one, of at most `window` in all; one that is not finite is left out."""
        # One that is infinite would make the average so for a whole window.
        if not all(map(math.isfinite, new)):
            return self
        return Recent((*self.epochs, epoch)[-window:], (*self.estimates, new)[-window:])

    @property
    def average(self) -> Average:
        """Averages the estimates; all NaN where there is none."""
        if not self.estimates:
            return Average(Estimate(math.nan, math.nan), math.nan)
        squares, traces = zip(*self.estimates)
        count = len(squares)
        error = statistics.stdev(squares) / math.sqrt(count) if count > 1 else math.nan
        return Average(Estimate(statistics.fmean(squares), statistics.fmean(traces)), error)


def recent(metrics: Iterable[Mapping[str, Any]], window: int) -> Recent:
    """Reads the last raw estimates from the lines of a metrics.jsonl."""
    result = Recent()
    for line in metrics:
        # What was not finite is null in the file.
        if line.get(SQUARE) is not None and line.get(TRACE) is not None:
            result = result.add(line["epoch"], Estimate(line[SQUARE], line[TRACE]), window)
    return result


def advice(measured: Recent, window: int, batch_size: int, worker_batch_size: int) -> str:
    """Advises on the batch size by the noise scale, in a line.

    At B examples a run takes 1 + B_noise/B times the fewest updates and 1 + B/B_noise times the
    fewest examples that it could (with B_crit ~ B_noise), so twice both at B_noise. There is no
    advice before the window is full, nor without a standard error.
    """
    mean, error = average = measured.average
    noise, name = mean.noise_scale, "gradient noise scale"
    evidence = _evidence(measured, error)
    # Not as `<= 0`, which is false of the NaN that stands for no measurement.
    if not mean.covariance_trace > 0:  # all workers alike, or none
        return f"{name}: no estimate ({evidence})"
    if len(measured.estimates) < window or not math.isfinite(error):
        number = f"{noise:,.0f}" if math.isfinite(noise) else "no estimate yet"
        return f"{name}, preliminary: {number} ({evidence})"
    if not math.isfinite(average.least):
        return f"{name} larger than can be told: |G|^2 is lost in its scatter ({evidence})"
    if not math.isfinite(average.most):
        suggested = _whole_workers(average.least, worker_batch_size)
        return (
            f"{name} at least {average.least:,.0f} ({evidence}): a batch_size of {suggested:,} "
            "takes at most about twice the fewest examples"
        )
    return (
        f"{name} {noise:,.0f}, within {average.least:,.0f} to {average.most:,.0f} ({evidence}): a "
        f"batch_size of {_whole_workers(noise, worker_batch_size):,} takes about twice the fewest "
        f"updates and twice the fewest examples, {batch_size:,} takes "
        f"{1 + noise / batch_size:.3g} and {1 + batch_size / noise:.3g} times"
    )


def _evidence(measured: Recent, error: float) -> str:
    """Says what a number is made of."""
    mean, count = measured.average.mean, len(measured.estimates)
    scatter = f" +- {error:.2g}" if math.isfinite(error) else ""
    text = f"|G|^2 {mean.gradient_square:.4g}{scatter}, tr(Sigma) {mean.covariance_trace:.4g}"
    if count < 2:
        return f"{text}, {pluralize(count, 'measurement')}"
    first, last = measured.epochs[0], measured.epochs[-1]
    return f"{text}, mean of {count} measurements, epochs {first:.2f} to {last:.2f}"


def _whole_workers(examples: float, worker_batch_size: int) -> int:
    """Rounds a batch size to whole workers, one at least."""
    return max(1, round(examples / worker_batch_size)) * worker_batch_size
