"""The noise scale of gradients whose mean and covariance are known."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worker_loop import quadratic_worker

from lbsgd.diagnostics.noise_scale import Estimate, Smoothed, advice, estimate, smoothed
from lbsgd.diagnostics.workers_gradient import compiled
from lbsgd.workers import place

DIMENSION, WORKERS, N, MEASUREMENTS = 20, 8, 4, 400


def line(measured: Estimate) -> dict[str, float]:
    return {
        "gradient_square": measured.gradient_square,
        "gradient_covariance_trace": measured.covariance_trace,
    }


def measure(workers_gradients: np.ndarray, n: int) -> Estimate:
    """From gradients `[k, P]` of workers of n."""
    small = np.mean(np.sum(workers_gradients**2, axis=1))
    large = np.sum(workers_gradients.mean(0) ** 2)
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
        found = jax.device_get(step(params, {}, batch))
        lines.append(line(estimate(np.mean(found.squares), N, found.mean_square, kn)))
    mean = smoothed(lines, 1 - 1e-6).mean  # all 400 alike, but for a part in 2500
    assert mean.covariance_trace == pytest.approx(trace, rel=4 * errors[0])
    assert mean.gradient_square == pytest.approx(square, rel=4 * errors[1])
    assert mean.noise_scale == pytest.approx(trace / square, rel=0.05)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.95])
def test_averages_are_weighted_by_age_and_add_up_to_one(smoothing):
    random = np.random.default_rng(0)
    raw = random.uniform(1.0, 2.0, (30, 2))
    weights = smoothing ** np.arange(29, -1, -1.0)
    expected = weights @ raw / weights.sum()
    found = smoothed((line(Estimate(*map(float, pair))) for pair in raw), smoothing).mean
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    # The ratio of averages, not the average of ratios.
    assert found.noise_scale == pytest.approx(expected[1] / expected[0], rel=1e-13)


def test_the_averages_go_on_from_the_metrics():
    """Bitwise, past lines that hold something else, or what was not finite."""
    raw = [Estimate(1 / 3, 2 / 7), Estimate(-0.1, 5.0), Estimate(1e-9, 1 / 11)]
    whole = Smoothed()
    for new in raw:
        whole = whole.add(new, 0.9)
    others = [{"step": 1, "train_loss": 2.0}, {"gradient_square": None}]
    others.append({"gradient_square": 1.0, "gradient_covariance_trace": None})
    assert smoothed([line(raw[0]), *others, line(raw[1])], 0.9).add(raw[2], 0.9) == whole
    assert whole.add(Estimate(math.nan, 1.0), 0.9) == whole
    assert whole.add(Estimate(1.0, math.inf), 0.9) == whole


def test_the_advice_is_what_the_trade_off_says():
    """At B_noise twice both; elsewhere (S/S_min - 1)(E/E_min - 1) = 1."""
    text = advice(Estimate(2.0, 2000.0), 250, 32)
    assert "noise scale 1,000 " in text
    assert "a batch_size of 992 takes about twice the fewest updates" in text
    assert text.endswith("250 takes 5 and 1.25 times")
    assert (5 - 1) * (1.25 - 1) == 1
    assert "a batch_size of 32 takes" in advice(Estimate(2.0, 2.0), 250, 32)


@pytest.mark.parametrize("mean", [Estimate(-1.0, 5.0), Estimate(0.0, 5.0), Smoothed().mean])
def test_where_the_gradient_is_lost_in_the_noise_there_is_no_estimate(mean):
    assert not math.isfinite(mean.noise_scale)
    assert advice(mean, 250, 32).startswith("gradient noise scale: no estimate yet (|G|^2 ")
