"""The noise scale of gradients whose mean and covariance are known."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worker_loop import quadratic_worker

from lbsgd.diagnostics.noise_scale import Estimate, Recent, advice, estimate, recent
from lbsgd.diagnostics.workers_gradient import compiled
from lbsgd.step.numbers import Numbers
from lbsgd.workers.placement import place

DIMENSION, WORKERS, N, MEASUREMENTS = 20, 8, 4, 400


def line(measured: Estimate, epoch: float = 0.0) -> dict[str, float]:
    return {
        "epoch": epoch,
        "gradient_square": measured.gradient_square,
        "gradient_covariance_trace": measured.covariance_trace,
    }


def measure(workers_gradients: np.ndarray, n: int) -> Estimate:
    """From gradients `[k, P]` of workers of n."""
    small = float(np.mean(np.sum(workers_gradients**2, axis=1)))
    large = float(np.sum(workers_gradients.mean(0) ** 2))
    return estimate(small, n, large, n * len(workers_gradients))


@pytest.mark.parametrize(("workers", "n"), [(2, 1), (3, 2), (2, 3)])
def test_both_estimates_are_unbiased(workers, n):
    """Over every sample of kn examples from four, each as likely: the expectation is exact."""
    gradients = np.array([[1.0, 2.0], [-3.0, 0.5], [0.0, -1.0], [4.0, 1.0]])
    samples = itertools.product(range(4), repeat=workers * n)
    found = np.array(
        [measure(gradients[list(s)].reshape(workers, n, 2).mean(1), n) for s in samples]
    )
    mean = gradients.mean(0)
    expected = (np.sum(mean**2), np.sum((gradients - mean) ** 2) / 4)
    # Means of at most 4096 numbers below 100.
    np.testing.assert_allclose(found.mean(0), expected, rtol=1e-12)
    assert found[:, 0].min() < 0 <= found[:, 1].min()


def test_a_quadratic_has_the_noise_scale_that_it_has(x64):
    """x ~ N(mu, S) and an example's gradient is H (w - x): G = H (w - mu), Sigma = H S H.

    For normal gradients tr_hat is n / (k - 1) sum_j |g_j - mean|^2, of variance 2 tr(Sigma^2) /
    (k - 1), and independent of the mean, whose square has the variance 4 G^T Sigma G / kn + 2
    tr(Sigma^2) / (kn)^2. 400 measurements of 8 workers of 4 (12,800 examples) bring four standard
    errors of the noise scale below 5%.
    """
    random = np.random.default_rng(1)
    curvature = np.linspace(0.5, 2.0, DIMENSION)
    mix = random.normal(size=(DIMENSION, DIMENSION)) / math.sqrt(DIMENSION)
    mu, w = random.normal(size=DIMENSION), random.normal(size=DIMENSION)
    gradient = curvature * (w - mu)
    sigma = curvature[:, None] * (mix @ mix.T) * curvature
    trace, square, kn = np.trace(sigma), np.sum(gradient**2), WORKERS * N

    of_trace = 2 * np.sum(sigma**2) / (WORKERS - 1)
    of_mean = 4 * gradient @ sigma @ gradient / kn + 2 * np.sum(sigma**2) / kn**2
    of_square = of_mean + of_trace / kn**2
    errors = np.sqrt(np.array([of_trace / trace**2, of_square / square**2]) / MEASUREMENTS)
    # The two estimates are less than fully dependent, so the sum is an upper bound.
    assert 4 * errors.sum() < 0.05

    x = mu + random.normal(size=(MEASUREMENTS, WORKERS, N, DIMENSION)) @ mix.T
    placement = place(kn, N, devices=2, accumulation_steps=2)
    step = compiled(quadratic_worker, placement, in_turn=False)
    params = {"w": jnp.asarray(w), "curvature": jnp.asarray(curvature)}
    lines = []
    for rows in x[:, placement.worker_of_slot()]:
        batch = jax.device_put({"x": rows}, placement.batch_sharding)
        found = jax.device_get(step(params, {}, Numbers(), batch))
        lines.append(line(estimate(float(np.mean(found.squares)), N, float(found.mean_square), kn)))
    mean = recent(lines, MEASUREMENTS).average.mean
    assert mean.covariance_trace == pytest.approx(trace, rel=4 * errors[0])
    assert mean.gradient_square == pytest.approx(square, rel=4 * errors[1])
    assert mean.noise_scale == pytest.approx(trace / square, rel=0.05)


def held(squares, traces=None, window=5) -> Recent:
    """After measurements an epoch apart, of |G|^2 and tr(Sigma)."""
    traces = [1.0] * len(squares) if traces is None else traces
    pairs = enumerate(zip(squares, traces), 1)
    return recent((line(Estimate(*map(float, pair)), float(i)) for i, pair in pairs), window)


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_the_average_is_of_the_last_measurements_alike(window):
    raw = np.random.default_rng(0).uniform(1.0, 2.0, (30, 2))
    found = held(*raw.T, window)
    last = raw[-window:]
    mean, error = found.average
    np.testing.assert_allclose(mean, last.mean(0), rtol=1e-13)
    # The ratio of averages, not the average of ratios.
    ratio = last[:, 1].mean() / last[:, 0].mean()
    assert mean.noise_scale == pytest.approx(ratio, rel=1e-13)
    assert (found.epochs[0], found.epochs[-1]) == (31 - len(last), 30)
    if window == 1:
        assert math.isnan(error)
    else:
        expected = last[:, 0].std(ddof=1) / math.sqrt(len(last))
        assert error == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fall", [10.0, 1.5])
def test_a_square_that_falls_is_followed(fall):
    """At a constant distance: by the mean of `fall^0` to `fall^4`, from the fifth measurement on.

    An exponential average, of whatever memory, would fall no faster than its weights.
    """
    squares = fall ** -np.arange(20.0)
    behind = np.mean(fall ** np.arange(5.0))
    for done in range(5, 21):
        average = held(squares[:done]).average
        true = 1 / squares[done - 1]
        assert average.mean.noise_scale == pytest.approx(true / behind, rel=1e-12)
        assert average.least < true


def test_the_standard_error_tells_a_number_from_luck():
    """Of normal estimates, t = mean / error over 5 has Student's distribution with 4 degrees.

    |t| > 2 has the probability 0.116117 (its distribution function is elementary), so t > 2 of
    estimates of nothing has half of it.
    """
    t = 2.0
    below = 0.5 + 3 / 8 * (t / math.sqrt(1 + t**2 / 4)) * (1 - t**2 / (1 + t**2 / 4) / 12)
    chance, trials = 1 - below, 4000
    random = np.random.default_rng(2)
    of_nothing = [held(random.normal(size=5)).average for _ in range(trials)]
    found = np.mean([math.isfinite(average.most) for average in of_nothing])
    assert found == pytest.approx(chance, abs=4 * math.sqrt(chance / trials))
    # |G|^2 is at most two errors above its average as often as that: then "at least" is right.
    of_something = [held(3 + random.normal(size=5)).average for _ in range(trials)]
    right = np.mean([average.least <= 1 / 3 for average in of_something])
    assert right == pytest.approx(below, abs=4 * math.sqrt(chance / trials))


def test_the_averages_go_on_from_the_metrics():
    """Bitwise, past lines that hold something else, or what was not finite."""
    raw = [Estimate(1 / 3, 2 / 7), Estimate(-0.1, 5.0), Estimate(1e-9, 1 / 11), Estimate(1.0, 2.0)]
    whole = Recent()
    for i, new in enumerate(raw):
        whole = whole.add(i / 7, new, 3)
    others = [{"step": 1, "train_loss": 2.0}, {"gradient_square": None}]
    others.append({"gradient_square": 1.0, "gradient_covariance_trace": None})
    lines = [line(raw[0]), *others, line(raw[1], 1 / 7), *others, line(raw[2], 2 / 7)]
    assert recent(lines, 3).add(3 / 7, raw[3], 3) == whole
    assert whole.estimates == tuple(raw[1:])
    assert whole.add(1.0, Estimate(math.nan, 1.0), 3) == whole
    assert whole.add(1.0, Estimate(1.0, math.inf), 3) == whole


def test_the_advice_is_what_the_trade_off_says():
    """At B_noise twice both; elsewhere (S/S_min - 1)(E/E_min - 1) = 1."""
    found = held([1.9, 2.1, 1.9, 2.1], [2000.0] * 4, 4)  # an error of 0.2 / sqrt(3) / sqrt(4)
    text = advice(found, 4, 250, 32)
    assert "noise scale 1,000, within 945 to 1,061 (|G|^2 2 +- 0.058, tr(Sigma) 2000, " in text
    assert "mean of 4 measurements, epochs 1.00 to 4.00): a batch_size of 992 takes " in text
    assert text.endswith("250 takes 5 and 1.25 times")
    assert (5 - 1) * (1.25 - 1) == 1
    small = held([1.9, 2.1, 1.9, 2.1], [2.0] * 4, 4)
    assert "a batch_size of 32 takes" in advice(small, 4, 250, 32)


@pytest.mark.parametrize(
    ("squares", "expected"),
    [
        ([], "gradient noise scale: no estimate ("),
        (
            [2.0],
            "gradient noise scale, preliminary: 1,000 (|G|^2 2, tr(Sigma) 2000, 1 measurement)",
        ),
        ([-1.0], "gradient noise scale, preliminary: no estimate yet (|G|^2 -1, "),
        ([1.0, 3.0, 2.0, 2.0], "gradient noise scale, preliminary: 1,000 (|G|^2 2 +- 0.41, "),
        # 1 +- sqrt(8 / 5): at most 3.53.
        ([-3, 1, 1, 1, 5], "gradient noise scale at least 567 (|G|^2 1 +- 1.3, "),
        ([-3.0, -3.1, -3.0, -3.1, -3.0], "gradient noise scale larger than can be told: "),
        ([0.0] * 5, "gradient noise scale larger than can be told: "),
    ],
)
def test_what_is_not_known_is_not_said(squares, expected):
    text = advice(held(squares, [2000.0] * len(squares)), 5, 250, 32)
    assert text.startswith(expected)
    advises = "at least" in expected
    assert ("a batch_size of 576 takes at most about twice the fewest examples" in text) == advises
    assert "updates" not in text


def test_one_measurement_at_a_time_has_no_scatter_and_no_advice():
    assert "preliminary" in advice(held([2.0] * 3, window=1), 1, 250, 32)


def test_workers_that_are_all_alike_have_no_noise():
    assert advice(held([2.0] * 5, [0.0] * 5), 5, 250, 32).startswith(
        "gradient noise scale: no estimate (|G|^2 2 "
    )
