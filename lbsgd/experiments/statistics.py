"""Statistics of final values: mean and spread over runs, and whether two rows differ.

Two rows are compared by Welch's t test, two-sided: for normal values whose variances may differ.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# What is called significant, and the power at which it is said how many runs would be needed.
SIGNIFICANCE, POWER = 0.05, 0.8
# With fewer runs than the first, degrees of freedom are too uncertain; more than the last are no
# advice.
FEWEST_RUNS, MOST_RUNS = 3, 1_000_000


class Summary(NamedTuple):
    """Sums final values up.

    Attributes:
      n: how many there are.
      mean: nan if there are none.
      std: the standard deviation with n - 1 below; nan if there are fewer than two.
    """

    n: int
    mean: float
    std: float

    def format(self, unit: str = "") -> str:
        """Writes it as papers do: "23.60 ± 0.12"; a single value alone, and "" for none."""
        digits = 2 if unit == "%" else 4
        if not self.n:
            return ""
        mean = f"{self.mean:.{digits}f}"
        return mean if math.isnan(self.std) else f"{mean} ± {self.std:.{digits}f}"


def summarize(values: Sequence[float] | np.ndarray) -> Summary:
    """Takes the mean and the standard deviation of final values `[n]`."""
    found = np.asarray(values, np.float64)
    mean = float(found.mean()) if len(found) else math.nan
    # Runs that came to the same have no spread, whatever rounding makes of their mean.
    spread = float(found.std(ddof=1)) if len(found) > 1 else math.nan
    return Summary(len(found), mean, 0.0 if _all_alike(found) else spread)


def _all_alike(values: np.ndarray) -> bool:
    return len(values) > 1 and bool(np.ptp(values) == 0)


class Difference(NamedTuple):
    """Holds how far a row is from another.

    Attributes:
      one: the row that is looked at.
      other: the one that it is compared with.
      value: mean of `one` less that of `other`.
      low: the lower end of the 95% confidence interval; nan where there is no test.
      high: its upper end.
      p: of Welch's t test; nan where there is none: with fewer than two runs in a row, or without
        spread in both.
    """

    one: Summary
    other: Summary
    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    @property
    def tested(self) -> bool:
        """Whether there was a test."""
        return not math.isnan(self.p)

    @property
    def significant(self) -> bool:
        """Whether the two can be told apart."""
        return self.p < SIGNIFICANCE


def compare(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> Difference:
    """Compares final values `[n]` with others `[m]` by Welch's t test."""
    a, b = summarize(one), summarize(other)
    value = a.mean - b.mean
    variances = _variances(a, b)
    if min(a.n, b.n) < 2 or not sum(variances):
        return Difference(a, b, value)
    from scipy.special import stdtr, stdtrit

    error = math.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / sum(v**2 / (s.n - 1) for v, s in zip(variances, (a, b)))
    half = error * float(stdtrit(freedom, 1 - SIGNIFICANCE / 2))
    p = 2 * float(stdtr(freedom, -abs(value) / error))
    return Difference(a, b, value, value - half, value + half, p)


def _variances(*rows: Summary) -> list[float]:
    """Computes the squared standard errors of means."""
    return [row.std**2 / row.n if row.n > 1 else math.nan for row in rows]


def power(difference: float, stds: tuple[float, float], n: int) -> float:
    """Computes how probable it is that Welch's test of n runs a row is significant.

    By the noncentral t distribution with the degrees of freedom of the true variances; those of
    the variances found are fewer, so that with five runs it is too high by 0.02, with three by 0.1.

    Args:
      difference: of the true means.
      stds: the true standard deviations.
    """
    from scipy.special import nctdtr, stdtrit

    squares = [std**2 for std in stds]
    freedom = (n - 1) * sum(squares) ** 2 / sum(square**2 for square in squares)
    away = abs(difference) / math.sqrt(sum(squares) / n)
    limit = float(stdtrit(freedom, 1 - SIGNIFICANCE / 2))
    return float(1 - nctdtr(freedom, away, limit) + nctdtr(freedom, away, -limit))


def runs_needed(difference: Difference) -> int | None:
    """Finds how many runs a row tell such a difference 4 times of 5, at 5%, two-sided.

    The means and standard deviations found are taken for the true ones, so it is a rough guide.

    Returns:
      None if no number up to a million does, or there was no test.
    """
    stds = (difference.one.std, difference.other.std)
    if not difference.tested or power(difference.value, stds, MOST_RUNS) < POWER:
        return None
    few, many = FEWEST_RUNS - 1, FEWEST_RUNS
    while power(difference.value, stds, many) < POWER:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (
            (middle, many) if power(difference.value, stds, middle) < POWER else (few, middle)
        )
    return many


def say(difference: Difference, unit: str = "", rises: bool = False) -> str:
    """Says whether two rows differ, in a sentence without a full stop.

    Args:
      unit: of the metric: "%" or "".
      rises: whether more of it is better.
    """
    a, b = difference.one.n, difference.other.n
    if not (a and b):
        return "there is no result to compare"
    apart = _signed(difference.value, unit)
    if min(a, b) < 2:
        return f"{apart}; one run has no spread to judge that by ({_sizes(a, b)}): run more seeds"
    if not difference.tested:
        if not difference.value:
            return f"all runs of both came to the same ({_sizes(a, b)})"
        return f"{apart}, without any spread in either ({_sizes(a, b)}), so there is no test"
    if difference.significant:
        better = "better" if (difference.value > 0) == rises else "worse"
        low, high = _signed(difference.low, unit), _signed(difference.high, unit)
        return (
            f"{apart} (95% interval {low} to {high}), significantly {better}: "
            f"Welch's t, {say_p(difference.p)}, {_sizes(a, b)}"
        )
    return f"{apart}: {_cannot(difference)}"


def _cannot(difference: Difference) -> str:
    """Says that two rows cannot be told apart, and how many runs would."""
    sizes = _sizes(difference.one.n, difference.other.n)
    needed = runs_needed(difference)
    number = f"n of about {needed:,}" if needed else "more than a million runs"
    return (
        f"cannot be told apart at {sizes} ({say_p(difference.p)}); to tell a difference of this "
        f"size {number} would be needed"
    )


def _sizes(a: int, b: int) -> str:
    return f"n = {a}" if a == b else f"n = {a} and {b}"


def say_p(p: float) -> str:
    """Writes a p-value: "p = 0.31", "p < 0.0001"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def _signed(value: float, unit: str) -> str:
    return f"{value:+.2f}" if unit == "%" else f"{value:+.4f}"
