"""The workers' gradients are those of a plain loop, in every placement."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.build import Run, build
from lbsgd.config import default_config, resolve
from lbsgd.data.pipeline import load
from lbsgd.diagnostics.confusion import Confusion, neighbour_cosines, pair_batches, pair_placement
from lbsgd.diagnostics.workers_gradient import WorkerGradients, compiled
from lbsgd.errors import ConfigError
from lbsgd.step import WorkerResult
from lbsgd.workers import place

N = 2
LONG = pytest.mark.long


def small_run(workers: int, devices: int, steps: int, **keys: object) -> Run:
    config = default_config()
    config.update(
        {
            "dtype": "float64",
            "batch_size": N * workers,
            "worker_batch_size": N,
            "total_steps": 20,
            "devices": devices,
            "accumulation_steps": steps,
            "label_smoothing": 0.1,
            "model": {"name": "resnet8", "width": 0.25},
            "learning_rate": {"warmup": "none"},
            "data": {"crop_padding": 1, "flip": True},
        }
    )
    config.update_from_flattened_dict(keys)
    return build(resolve(config))


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])


def written_out(parts: Run, state, rows) -> np.ndarray:
    """Each worker's gradient by `jax.grad`, one after the other, `[k, P]`."""

    def loss(params, row):
        return parts.worker(params, state.batch_stats, row).loss

    gradient = jax.jit(jax.grad(loss))
    count = len(rows["label"])
    each = ({key: x[j] for key, x in rows.items()} for j in range(count))
    return np.stack([flat(gradient(state.params, row)) for row in each])


def summed_up(gradients: np.ndarray) -> WorkerGradients:
    mean = gradients.mean(0)
    return WorkerGradients(
        np.sum(gradients**2, axis=1),
        np.sum(gradients[:-1] * gradients[1:], axis=1),
        np.sum(mean**2),
    )


@pytest.fixture(scope="module")
def oracle():
    """What a loop finds for k workers, computed once for each k."""
    jax.config.update("jax_enable_x64", True)

    @functools.cache
    def result(workers: int) -> WorkerGradients:
        parts = small_run(workers, 1, 1)
        rows = load(parts.train_batches().job(3))  # on one device the slots are the workers
        return summed_up(written_out(parts, parts.start(), {k: x[0] for k, x in rows.items()}))

    yield result
    jax.config.update("jax_enable_x64", False)


QUICK = {(24, 5, 2, False), (8, 3, 2, False), (24, 8, 1, False), (24, 5, 2, True)}


@pytest.mark.parametrize(
    ("workers", "devices", "steps", "in_turn"),
    [
        pytest.param(*case, marks=[] if case in QUICK else LONG)
        for k in (24, 8)
        for d in (1, 2, 3, 5, 8)
        for a in (1, 2, 4)
        for case in ((k, d, a, False), (k, d, a, True))
        if k != 8 or not case[3] or a == 1
    ],
)
def test_they_are_those_of_a_loop_in_every_place(oracle, workers, devices, steps, in_turn):
    parts = small_run(workers, devices, steps)
    batch = next(parts.train_batches().between(3, 4))
    state = parts.start()
    step = compiled(parts.worker, parts.placement, in_turn=in_turn)
    found = jax.device_get(step(state.params, state.batch_stats, batch))
    assert found.squares.shape == (workers,)
    assert found.neighbours.shape == (workers - 1,)
    for name, value in oracle(workers)._asdict().items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, err_msg=name)


def linear_worker(params, batch_stats, batch) -> WorkerResult:
    """Its gradient is the mean of its rows."""
    loss = jnp.mean(batch["x"] @ params["w"])
    return WorkerResult(loss, loss, batch_stats)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize(("workers", "devices", "steps"), [(7, 8, 1), (7, 3, 2), (12, 2, 4)])
def test_idle_slots_are_dropped_by_selection(x64, workers, devices, steps, in_turn):
    """Whatever they hold, as long as it is finite or not."""
    placement = place(workers, 1, devices=devices, accumulation_steps=steps)
    x = np.random.default_rng(0).normal(size=(workers, 1, 5))
    rows = x[placement.worker_of_slot()]
    rows.reshape(-1, 1, 5)[workers:] = np.nan
    batch = jax.device_put({"x": rows}, placement.batch_sharding)
    params = {"w": jnp.zeros(5)}
    found = compiled(linear_worker, placement, in_turn=in_turn)(params, {}, batch)
    for name, value in summed_up(x[:, 0])._asdict().items():
        # Sums of at most 60 products.
        np.testing.assert_allclose(
            getattr(found, name), value, rtol=1e-13, atol=1e-13, err_msg=name
        )


def linear_gradients(x: np.ndarray) -> WorkerGradients:
    placement = place(len(x), 1, devices=2)
    rows = x[placement.worker_of_slot(), None]
    batch = jax.device_put({"x": rows}, placement.batch_sharding)
    params = {"w": jnp.zeros(x.shape[1])}
    return jax.device_get(compiled(linear_worker, placement, in_turn=False)(params, {}, batch))


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_cosines_are_of_the_angles_between_gradients(x64, degrees):
    angle = math.radians(degrees)
    turned = np.array([[1.0, 0.0], [3 * math.cos(angle), 3 * math.sin(angle)]])
    cosines = neighbour_cosines(linear_gradients(np.concatenate([turned, turned])))
    np.testing.assert_allclose(cosines, [math.cos(angle)] * 3, atol=1e-15)


def test_a_gradient_of_0_has_no_cosine(x64):
    cosines = neighbour_cosines(linear_gradients(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])))
    assert np.isnan(cosines).all()


# --- gradient confusion ------------------------------------------------------------------------

PAIRS, SIZE = 5, 24


def confusion_run(devices: int, **keys: object) -> Run:
    chosen = {"pairs": PAIRS, "batch_size": SIZE, "every_steps": 1}
    named = {f"diagnostics.confusion.{key}": value for key, value in chosen.items()}
    return small_run(8, devices, 1, **named, **keys)


def cosines_of(parts: Run, done: int = 7) -> list[float]:
    return Confusion(parts, lambda: None, lambda done: False)(done, parts.start())


def minibatches(parts: Run, done: int) -> list[dict[str, np.ndarray]]:
    """The 2 * PAIRS minibatches as they follow each other in the order, image by image."""
    placement = pair_placement(1, SIZE)
    batches = pair_batches(parts, placement, done)
    first = parts.timeline.examples_seen(done)
    found = []
    for i in range(2 * PAIRS):
        epochs, examples = batches.order(first + i * SIZE + np.arange(SIZE))
        found.append(load(batches.loader.job(epochs, examples)))
    return found


@pytest.fixture(scope="module")
def confusion_oracle():
    jax.config.update("jax_enable_x64", True)
    parts = confusion_run(1)
    batches = minibatches(parts, 7)
    rows = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
    gradients = written_out(parts, parts.start(), rows)
    norms = np.linalg.norm(gradients, axis=1)
    yield np.sum(gradients[::2] * gradients[1::2], axis=1) / (norms[::2] * norms[1::2])
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("devices", "keys"),
    [
        pytest.param(1, {}, marks=LONG),
        (3, {}),
        pytest.param(4, {}, marks=LONG),
        pytest.param(8, {}, marks=LONG),
        pytest.param(2, {"accumulation_steps": 2}, marks=LONG),
        pytest.param(2, {"diagnostics.in_turn": True}, marks=LONG),
        # Synced in training, but each minibatch of a pair is alone.
        (2, {"batch_norm.synced_workers": 4}),
    ],
)
def test_confusion_is_that_of_a_loop_over_the_same_minibatches(confusion_oracle, devices, keys):
    found = cosines_of(confusion_run(devices, **keys))
    np.testing.assert_allclose(found, confusion_oracle, rtol=1e-9, atol=1e-9)


def test_minibatches_of_pairs_are_in_an_order_of_their_own():
    """Each example once an epoch, others at another time, and not those of training."""
    parts = confusion_run(1)
    batches = pair_batches(parts, pair_placement(1, SIZE), 0)
    stream = np.concatenate([batches.examples(i)[1].ravel() for i in range(1437 // (2 * SIZE))])
    assert len(set(stream.tolist())) == len(stream)
    training = parts.train_batches().order(np.arange(len(stream)))[1]
    assert np.mean(stream == training) < 0.05
    later = pair_batches(parts, pair_placement(1, SIZE), 1).examples(0)[1].ravel()
    np.testing.assert_array_equal(later, stream[16 : 16 + 2 * SIZE])  # 16 examples seen


def test_confusion_stops_when_the_run_does(x64):
    asked = []

    def second(done: int) -> bool:
        asked.append(done)
        return len(asked) == 2

    parts = confusion_run(1)
    assert Confusion(parts, lambda: None, second)(7, parts.start()) is None
    assert asked == [7, 7]


def agreeing_worker(params, batch_stats, batch) -> WorkerResult:
    """All examples pull the same way."""
    loss = jnp.sum(params["w"]) * (1 + jnp.mean(batch["label"].astype(jnp.float64)))
    return WorkerResult(loss, loss, batch_stats)


def test_where_all_examples_agree_there_is_no_confusion(x64):
    import dataclasses

    parts = dataclasses.replace(confusion_run(2), worker=agreeing_worker)
    state = parts.start().replace(params={"w": jnp.ones(3)}, batch_stats={})
    found = Confusion(parts, lambda: None, lambda done: False)(7, state)
    np.testing.assert_allclose(found, np.ones(PAIRS), rtol=1e-15)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"diagnostics.workers.every_steps": 5, "batch_norm.synced_workers": 4},
            r"^diagnostics\.workers compares gradients of single workers, which "
            r"batch_norm\.synced_workers=4 mixes; set that to 1, or .* to 0$",
        ),
        (
            {"diagnostics.workers.every_steps": 5, "worker_batch_size": 16},
            r"^diagnostics\.workers compares k > 1 workers, and batch_size=16 is one of "
            r"worker_batch_size=16; lower that, or ",
        ),
        (
            {"diagnostics.confusion.every_steps": 5, "diagnostics.confusion.batch_size": 1438},
            r"^diagnostics\.confusion\.batch_size=1438 is more than the 1,437 training examples",
        ),
        ({"diagnostics.layers.every_epochs": 1e-4}, r"diagnostics\.layers\.every_epochs=0\.0001 "),
        (
            {"diagnostics.layers.every_epochs": 1.0, "diagnostics.layers.every_steps": 3},
            "say the same thing",
        ),
        ({"diagnostics.workers.smoothing": 1.0}, r"diagnostics\.workers\.smoothing must be"),
        ({"diagnostics.confusion.pairs": 0}, r"diagnostics\.confusion\.pairs must be positive"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(x64, keys, message):
    with pytest.raises(ConfigError, match=message):
        small_run(8, 1, 1, **keys)


def test_diagnostics_are_no_part_of_what_a_run_is(x64):
    on = confusion_run(1, **{"diagnostics.workers.every_steps": 1, "diagnostics.in_turn": True})
    assert on.identity() == small_run(8, 1, 1).identity()
