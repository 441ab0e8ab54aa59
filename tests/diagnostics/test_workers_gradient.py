"""The workers' gradients are those of a plain loop, in every placement."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worker_loop import linear_worker, quadratic_worker, small_run, written_out

from lbsgd.data.pipeline import load_job
from lbsgd.diagnostics.confusion import neighbour_cosines
from lbsgd.diagnostics.workers_gradient import WorkerGradients, compiled
from lbsgd.step.numbers import Numbers
from lbsgd.workers.placement import place


def summed_up(gradients: np.ndarray) -> WorkerGradients:
    """What there is to know of gradients `[k, P]`."""
    mean = gradients.mean(0)
    return WorkerGradients(
        np.sum(gradients**2, axis=1),
        np.sum(gradients[:-1] * gradients[1:], axis=1),
        np.sum(mean**2),
    )


def assert_same(found: WorkerGradients, expected: WorkerGradients, tolerance: float) -> None:
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(
            getattr(found, name), value, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.fixture(scope="module")
def oracle():
    """What a loop finds for k workers of a network, computed once for each k."""
    jax.config.update("jax_enable_x64", True)

    @functools.cache
    def result(workers: int) -> WorkerGradients:
        parts = small_run(workers, 1, 1)
        rows = load_job(
            parts.feed.train_batches().job(3)
        )  # on one device the slots are the workers
        return summed_up(
            written_out(parts, parts.program.start(), {k: x[0] for k, x in rows.items()})
        )

    yield result
    jax.config.update("jax_enable_x64", False)


@pytest.mark.long
@pytest.mark.parametrize(
    ("workers", "devices", "steps", "in_turn"),
    [
        case
        for k in (24, 8)
        for d in (1, 2, 3, 5, 8)
        for a in (1, 2, 4)
        for case in ((k, d, a, False), (k, d, a, True))
        if k == 8 or not case[3]
    ],
)
def test_of_a_network_they_are_those_of_a_loop(oracle, workers, devices, steps, in_turn):
    parts = small_run(workers, devices, steps)
    batch = next(parts.feed.train_batches().between(3, 4))
    state = parts.program.start()
    step = compiled(parts.plan.worker, parts.plan.placement, in_turn=in_turn)
    numbers = parts.program.numbers.at(3)
    found = jax.device_get(step(state.params, state.batch_stats, numbers, batch))
    assert_same(found, oracle(workers), 1e-9)


@pytest.mark.parametrize(
    ("workers", "devices", "steps", "in_turn"),
    [
        pytest.param(*case, marks=() if case[0] == 7 and case[2] == 2 else pytest.mark.long)
        for case in itertools.product((7, 2, 24), (1, 2, 3, 5, 8), (1, 2, 4), (False, True))
    ],
)
def test_they_are_the_same_in_every_place(x64, workers, devices, steps, in_turn):
    """Idle slots are dropped by selection: here they hold what is no number."""
    placement = place(3 * workers, 3, devices=devices, accumulation_steps=steps)
    random = np.random.default_rng(0)
    x, w, curvature = random.normal(size=(workers, 3, 5)), random.normal(size=5), np.arange(1.0, 6)
    rows = x[placement.worker_of_slot()]
    rows.reshape(-1, 3, 5)[workers:] = np.nan
    batch = jax.device_put({"x": rows}, placement.batch_sharding)
    params = {"w": jnp.asarray(w), "curvature": jnp.asarray(curvature)}
    found = compiled(quadratic_worker, placement, in_turn=in_turn)(params, {}, Numbers(), batch)
    # Sums of at most 24 * 3 * 5 products of numbers below 100.
    assert_same(found, summed_up(np.mean(curvature * (w - x), axis=1)), 1e-11)


def linear_gradients(x: np.ndarray) -> WorkerGradients:
    """Of workers whose gradients are the rows of x."""
    placement = place(len(x), 1, devices=2)
    rows = x[placement.worker_of_slot(), None]
    batch = jax.device_put({"x": rows}, placement.batch_sharding)
    params = {"w": jnp.zeros(x.shape[1])}
    step = compiled(linear_worker, placement, in_turn=False)
    return jax.device_get(step(params, {}, Numbers(), batch))


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_cosines_are_of_the_angles_between_gradients(x64, degrees):
    angle = math.radians(degrees)
    turned = np.array([[1.0, 0.0], [3 * math.cos(angle), 3 * math.sin(angle)]])
    cosines = neighbour_cosines(linear_gradients(np.concatenate([turned, turned])))
    np.testing.assert_allclose(cosines, [math.cos(angle)] * 3, atol=1e-15)


def test_a_gradient_of_0_has_no_cosine(x64):
    cosines = neighbour_cosines(linear_gradients(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])))
    assert np.isnan(cosines).all()
