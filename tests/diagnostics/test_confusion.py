"""Cosines of pairs of minibatches, against a loop over the same minibatches, and known ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from monitors import quiet
from worker_loop import small_run, written_out

from lbsgd.data.pipeline import load_job
from lbsgd.diagnostics.confusion import Confusion, pair_batches, pair_placement
from lbsgd.run.build import Run
from lbsgd.run.program import Program
from lbsgd.step.worker import WorkerResult

LONG = pytest.mark.long
PAIRS, SIZE, DONE = 5, 24, 7


def confusion_run(devices: int, **keys: object) -> Run:
    chosen = {"pairs": PAIRS, "batch_size": SIZE, "every_steps": 1}
    named = {f"diagnostics.confusion.{key}": value for key, value in chosen.items()}
    return small_run(8, devices, 1, **named, **keys)


def measure(parts: Run, state, should_stop=lambda done: False) -> list[float] | None:
    monitor = quiet(parts.plan, should_stop=should_stop)
    return Confusion(parts.program, parts.feed, monitor)(DONE, state)


@pytest.fixture(scope="module")
def oracle():
    """The minibatches as they follow each other in the order, and each one's gradient."""
    jax.config.update("jax_enable_x64", True)
    parts = confusion_run(1)
    batches = pair_batches(parts.feed, pair_placement(1, SIZE), DONE)
    first = parts.plan.timeline.examples_seen(DONE)
    epochs, examples = batches.order(first + np.arange(2 * PAIRS * SIZE).reshape(-1, SIZE))
    gradients = written_out(
        parts, parts.program.start(), load_job(batches.loader.job(epochs, examples))
    )
    norms = np.linalg.norm(gradients, axis=1)
    yield np.sum(gradients[::2] * gradients[1::2], axis=1) / (norms[::2] * norms[1::2])
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("devices", "keys"),
    [
        pytest.param(1, {}, marks=LONG),
        pytest.param(3, {}, marks=LONG),
        pytest.param(4, {}, marks=LONG),
        pytest.param(8, {}, marks=LONG),
        pytest.param(2, {"accumulation_steps": 2}, marks=LONG),
        pytest.param(2, {"diagnostics.in_turn": True}, marks=LONG),
        # Synced in training, but each minibatch of a pair is alone.
        (2, {"batch_norm.synced_workers": 4}),
    ],
)
def test_it_is_that_of_a_loop_over_the_same_minibatches(oracle, devices, keys):
    parts = confusion_run(devices, **keys)
    np.testing.assert_allclose(measure(parts, parts.program.start()), oracle, rtol=1e-9, atol=1e-9)


def test_minibatches_of_pairs_are_in_an_order_of_their_own(x64):
    """Each example once an epoch, others at another time, and not those of training."""
    parts = confusion_run(1)
    batches = pair_batches(parts.feed, pair_placement(1, SIZE), 0)
    stream = np.concatenate([batches.examples(i)[1].ravel() for i in range(1437 // (2 * SIZE))])
    assert len(set(stream.tolist())) == len(stream)
    training = parts.feed.train_batches().order(np.arange(len(stream)))[1]
    # Two permutations agree in one place on average.
    assert np.sum(stream == training) < 10
    later = pair_batches(parts.feed, pair_placement(1, SIZE), 1).examples(0)[1].ravel()
    np.testing.assert_array_equal(later, stream[16 : 16 + 2 * SIZE])  # 16 examples seen


def agreeing_worker(params, batch_stats, numbers, batch, index) -> WorkerResult:
    """All examples pull the same way, some more than others."""
    pull = 1 + jnp.mean(batch["label"].astype(jnp.float64))
    loss = pull * jnp.sum(params["w"])
    return WorkerResult(loss, {}, batch_stats)


def opposed_worker(params, batch_stats, numbers, batch, index) -> WorkerResult:
    """Two tasks: batches of more even than odd digits pull the opposite way of the others."""
    odd = jnp.mean((batch["label"] % 2).astype(jnp.float64))
    loss = (odd - 0.5 + 1e-3) * jnp.sum(params["w"])
    return WorkerResult(loss, {}, batch_stats)


def with_worker(worker, devices: int = 2):
    parts = confusion_run(devices)
    plan = dataclasses.replace(parts.plan, worker=worker, trained={"w": True})
    parts = parts._replace(plan=plan, program=Program(plan))
    return parts, parts.program.start().replace(params={"w": jnp.ones(3)}, batch_stats={})


def test_where_all_examples_agree_there_is_no_confusion(x64):
    np.testing.assert_allclose(measure(*with_worker(agreeing_worker)), np.ones(PAIRS), rtol=1e-15)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=LONG), 2, pytest.param(3, marks=LONG)])
def test_opposite_tasks_are_opposite(x64, devices):
    """The cosine is 1 or -1, by the labels of the pair."""
    parts, state = with_worker(opposed_worker, devices)
    batches = pair_batches(parts.feed, pair_placement(1, SIZE), DONE)
    first = parts.plan.timeline.examples_seen(DONE)
    epochs, examples = batches.order(first + np.arange(2 * PAIRS * SIZE).reshape(-1, SIZE))
    labels = load_job(batches.loader.job(epochs, examples))["label"]
    side = np.sign(np.mean(labels % 2, axis=1) - 0.5 + 1e-3)
    expected = side[::2] * side[1::2]
    assert set(expected) == {1.0, -1.0}
    np.testing.assert_allclose(measure(parts, state), expected, rtol=1e-15)


def test_it_stops_when_the_run_does(x64):
    asked = []

    def second(done: int) -> bool:
        asked.append(done)
        return len(asked) == 2

    assert measure(*with_worker(agreeing_worker), second) is None
    assert asked == [DONE, DONE]
