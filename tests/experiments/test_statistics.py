"""Statistics of final values: held against numpy and scipy.stats, and against simulated runs."""

import math

import numpy as np
import pytest
from scipy import stats

from lbsgd.experiments.statistics import (
    POWER,
    Difference,
    Summary,
    compare,
    power,
    runs_needed,
    say,
    say_p,
    summarize,
)

# Some of Table 1 of Goyal et al. might have come of these.
BASELINE = [23.44, 23.55, 23.60, 23.66, 23.75]
NO_WARMUP = [24.40, 24.66, 24.80, 25.02, 25.32]
GRADUAL = [23.62, 23.70, 23.74, 23.81, 23.83]


def test_mean_and_deviation_are_those_of_numpy():
    found = summarize(BASELINE)
    assert found.n == 5
    assert found.mean == pytest.approx(np.mean(BASELINE), rel=1e-15)
    assert found.std == pytest.approx(np.std(BASELINE, ddof=1), rel=1e-15)
    assert found.format("%") == "23.60 ± 0.12"


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([], ""),
        ([23.6], "23.60"),
        ([23.5, 23.7], "23.60 ± 0.14"),
        ([0.1, 0.1, 0.1], "0.10 ± 0.00"),
    ],
)
def test_few_values_are_written_with_what_is_known(values, written):
    assert summarize(values).format("%") == written


def test_other_metrics_have_more_digits():
    assert summarize([0.25, 0.75]).format() == "0.5000 ± 0.3536"


def test_runs_that_came_to_the_same_have_no_spread_of_rounding():
    # np.std of these is 1.4e-17.
    assert summarize([0.1, 0.1, 0.1]).std == 0.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NO_WARMUP, BASELINE),
        (GRADUAL, BASELINE),
        (NO_WARMUP[:2], BASELINE),
        (BASELINE, [5.0, 90.0]),
        ([1.0, 1.0, 1.0], BASELINE),
    ],
)
@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, where a row has no spread
def test_difference_is_that_of_scipy(one, other):
    found, oracle = compare(one, other), stats.ttest_ind(one, other, equal_var=False)
    assert found.value == pytest.approx(np.mean(one) - np.mean(other), rel=1e-12)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)
    interval = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def simulated_power(difference, stds, n):
    """With a standard error of 0.006 or less."""
    draws, generator = 6_000, np.random.default_rng(0)
    one = generator.normal(difference, stds[0], (draws, n))
    other = generator.normal(0.0, stds[1], (draws, n))
    return (stats.ttest_ind(one, other, axis=1, equal_var=False).pvalue < 0.05).mean()


@pytest.mark.parametrize(
    ("difference", "stds", "n"),
    [(0.08, (0.12, 0.09), 23), (1.0, (0.5, 1.5), 6), (2.0, (1.0, 1.0), 5), (0.5, (1.0, 1.0), 50)],
)
def test_power_is_that_of_simulated_runs(difference, stds, n):
    # Besides the error of the simulation: degrees of freedom are those of the true variances.
    tolerance = 0.024 + 0.1 / n
    found = simulated_power(difference, stds, n)
    assert power(difference, stds, n) == pytest.approx(found, abs=tolerance)


@pytest.mark.parametrize("difference", [0.7, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("stds", [(1.0, 1.0), (0.5, 1.5)])
def test_so_many_runs_tell_the_difference_four_times_of_five(difference, stds):
    rows = [Summary(5, mean, std) for mean, std in zip((difference, 0.0), stds)]
    needed = runs_needed(Difference(*rows, difference, p=0.5))
    assert simulated_power(difference, stds, needed) > 0.74
    assert needed == 3 or simulated_power(difference, stds, needed - 1) < 0.82


def test_runs_needed_are_the_fewest_that_have_the_power():
    found = compare(GRADUAL, BASELINE)
    needed = runs_needed(found)
    stds = (found.one.std, found.other.std)
    assert power(found.value, stds, needed) >= POWER > power(found.value, stds, needed - 1)
    # By the normal approximation, which is a little low: (1.96 + 0.84)^2 (s^2 + s^2) / d^2.
    assert 8.3 < needed < 12


def test_no_number_of_runs_tells_what_is_no_difference():
    assert runs_needed(compare([1.0, 2.0], [1.0, 2.0])) is None
    assert "more than a million runs would be needed" in say(compare([1.0, 2.0], [1.0, 2.0]))


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (NO_WARMUP, BASELINE, "+1.24 (95% interval +0.81 to +1.67), significantly worse: Welch's"),
        (BASELINE, NO_WARMUP, "-1.24 (95% interval -1.67 to -0.81), significantly better: Welch's"),
        (GRADUAL, BASELINE, "+0.14: cannot be told apart at n = 5 (p = 0.065); to tell a"),
        ([24.0], BASELINE, "+0.40; one run has no spread to judge that by (n = 1 and 5)"),
        ([], BASELINE, "there is no result to compare"),
        (BASELINE, [], "there is no result to compare"),
        ([7.0, 7.0], [7.0, 7.0, 7.0], "all runs of both came to the same (n = 2 and 3)"),
        ([7.0, 7.0], [6.0, 6.0], "+1.00, without any spread in either (n = 2), so there is no"),
    ],
)
def test_differences_are_said(one, other, said):
    assert say(compare(one, other), "%").startswith(said)


def test_more_of_a_metric_may_be_better():
    assert "significantly better" in say(compare(NO_WARMUP, BASELINE), "%", rises=True)


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.31234, "p = 0.31"), (1e-5, "p < 0.0001"), (1.0, "p = 1"), (0.0054, "p = 0.0054")],
)
def test_probabilities_are_short(p, said):
    assert say_p(p) == said


def test_there_is_no_test_of_nothing():
    found = compare([], [])
    assert not found.tested
    assert not found.significant
    assert math.isnan(found.value)
