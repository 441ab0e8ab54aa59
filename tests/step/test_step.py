"""One update against the same written out worker by worker, in float64.

The oracle knows the network's forward pass (checked against PyTorch elsewhere) and `jax.grad`,
nothing of placements, lanes or reductions.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.run.build import Run, build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.program import Program
from lbsgd.tasks.losses import wrong_at

EPS = np.finfo(np.float64).eps
WORKERS, N, CLASSES, SIZE = 8, 32, 10, 8
UPDATES = 3
SMOOTHING, MOMENTUM, DECAY = 0.1, 0.9, 0.01
# Gradual warmup from 0.05 over two updates to 0.05 * 256 / 64.
RATES = (0.05, 0.125, 0.2)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def run_on(devices: int, running_variance: str = "within") -> Run:
    config = default_config()
    config.update(
        {
            "dtype": "float64",
            "batch_size": WORKERS * N,
            "worker_batch_size": N,
            "total_steps": UPDATES,
            "devices": devices,
            "label_smoothing": SMOOTHING,
            "model": {"name": "cifar_resnet8", "width": 0.5},
            "batch_norm": {"running_variance": running_variance},
            "learning_rate": {
                "reference_learning_rate": RATES[0],
                "reference_batch_size": 64,
                "warmup_epochs": 0.0,
                "warmup_steps": 2,
                "decay": "none",
            },
            "optimizer": {"momentum": MOMENTUM, "nesterov": True, "weight_decay": DECAY},
            "data": {
                "source": "synthetic",
                "image_size": SIZE,
                "synthetic_classes": CLASSES,
                "synthetic_examples": 4096,
                "mean": MEAN,
                "std": STD,
            },
        }
    )
    return build(resolve(config))


@pytest.fixture(scope="module", autouse=True)
def double_precision():
    """64-bit types for all tests of this module, so that they can share what is compiled."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def minibatch(seed: int) -> dict[str, np.ndarray]:
    """Random images uint8 `[k, n, 8, 8, 3]`, of another brightness for each worker, and labels.

    So the means of the workers lie apart, and mean(var) is not mean(var) + var(mean).
    """
    random = np.random.default_rng(seed)
    brightest = np.linspace(100, 256, WORKERS).reshape(-1, 1, 1, 1, 1)
    images = random.uniform(0, brightest, (WORKERS, N, SIZE, SIZE, 3)).astype(np.uint8)
    return {"image": images, "label": random.integers(0, CLASSES, (WORKERS, N), np.int32)}


@pytest.fixture(scope="module")
def start():
    """The state to start from, in numpy: random, with nothing at 0 or 1 but the momentum."""
    random = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":  # keeps the scale of activations
            return random.normal(size=leaf.shape) * np.sqrt(2 * leaf.shape[-1] / leaf.size)
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.5, 1.5, leaf.shape)
        return random.normal(size=leaf.shape) * 0.1

    state = jax.eval_shape(run_on(1).plan.initial_state)
    return state.replace(
        update_index=np.int32(0),
        skipped=np.int32(0),
        params=jax.tree_util.tree_map_with_path(fill, state.params),
        batch_stats=jax.tree_util.tree_map_with_path(fill, state.batch_stats),
        opt_state=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.opt_state),
    )


# --- the oracle ------------------------------------------------------------------------------


def standardise(images) -> np.ndarray:
    return (images / 255.0 - np.array(MEAN)) / np.array(STD)


def written_out_loss(params, stats, x, labels, *, model):
    """Loss, statistics and logits of one worker's examples."""
    variables = {"params": params, "batch_stats": stats}
    logits, left = model.apply(variables, x, train=True, mutable=["batch_stats"])
    target = (1 - SMOOTHING) * jax.nn.one_hot(labels, CLASSES) + SMOOTHING / CLASSES
    log_p = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=1, keepdims=True))
    return jnp.mean(-jnp.sum(target * log_p, axis=1)), (left["batch_stats"], logits)


def leaves(tree) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def mean_over(trees) -> dict[str, np.ndarray]:
    return {path: np.mean([tree[path] for tree in trees], axis=0) for path in trees[0]}


def mean_and_total_variance(trees) -> dict[str, np.ndarray]:
    """Mean of the means; mean(var) + var(mean)."""
    mean = mean_over(trees)
    for path in mean:
        if path.endswith("/var"):
            means = [tree[path.removesuffix("var") + "mean"] for tree in trees]
            mean[path] = mean[path] + np.var(means, axis=0)
    return mean


class WrittenOut(NamedTuple):
    """What the oracle has after an update: running averages of both kinds, within and total."""

    params: dict[str, np.ndarray]
    running: dict[str, dict[str, np.ndarray]]
    metrics: dict[str, float]


def loop_over_workers(worker, params, batch):
    """Mean gradient, statistics of each worker, mean loss and mean error of a minibatch."""
    gradients, stats, losses, wrong = [], [], [], []
    for images, labels in zip(batch["image"], batch["label"]):
        (loss, (left, logits)), gradient = worker(params, x=standardise(images), labels=labels)
        gradients.append(leaves(gradient))
        stats.append(leaves(left))
        losses.append(float(loss))
        wrong.append(np.argmax(np.asarray(logits), axis=1) != labels)
    return mean_over(gradients), stats, np.mean(losses), np.mean(wrong)


@pytest.fixture(scope="module")
def written_out(start) -> list[WrittenOut]:
    """After each update. Running averages do not enter the training, so both kinds share it."""
    loss = functools.partial(
        written_out_loss, stats=start.batch_stats, model=run_on(1).plan.network.module
    )
    worker = jax.jit(jax.value_and_grad(loss, has_aux=True))
    structure = jax.tree.structure(start.params)
    params = leaves(start.params)
    buffers = dict.fromkeys(params, 0.0)
    running = dict.fromkeys(("within", "total"), leaves(start.batch_stats))
    history = []
    for update, rate in enumerate(RATES):
        tree = jax.tree.unflatten(structure, list(params.values()))
        gradient, stats, loss, error = loop_over_workers(worker, tree, minibatch(update))
        params, buffers = dict(params), dict(buffers)
        for path, w in params.items():
            # Kernels, which have more than one axis, decay; coupled, equation (8).
            g = gradient[path] + (DECAY * w if w.ndim > 1 else 0.0)
            buffers[path] = MOMENTUM * buffers[path] + g
            params[path] = w - rate * (g + MOMENTUM * buffers[path])
        new = {"within": mean_over(stats), "total": mean_and_total_variance(stats)}
        running = {
            kind: {path: 0.9 * r + 0.1 * new[kind][path] for path, r in old.items()}
            for kind, old in running.items()
        }
        metrics = {
            "train_loss": loss,
            "train_error": 100 * error,
            "learning_rate": rate,
            "gradient_norm": np.linalg.norm(np.concatenate([g.ravel() for g in gradient.values()])),
            "skipped": 0,
        }
        history.append(WrittenOut(params, running, metrics))
    return history


# --- the large minibatch ---------------------------------------------------------------------

# A number of a weight gradient is a sum of at most kn * h * w = 16,384 terms, and nine layers lie
# before it and after it. Roundings of 1e-16 add up as a random walk, so by sqrt(16384) = 128 in a
# sum: 1e-12 after three updates, for numbers of order 1. A single example of 256 left out, or the
# rate of another update, would be a change of 1e-4 and more.
TOLERANCE = UPDATES * 128 * 18 * EPS


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, "within"), marks=pytest.mark.long),
        pytest.param((8, "within"), marks=pytest.mark.long),
        pytest.param((1, "total"), marks=pytest.mark.long),
        (8, "total"),
    ],
)
def trained(request, start):
    """(kind of running variance, states and metrics after each update) on 1 and 8 devices."""
    devices, kind = request.param
    run = run_on(devices, kind)
    step = run.program.compile_train_step()
    state = jax.device_put(start, run.plan.placement.replicated)
    history = []
    for update in range(UPDATES):
        # One accumulation step; workers stand in order in the slots.
        batch = {key: x[None] for key, x in minibatch(update).items()}
        assert batch["label"].shape == (1, devices * run.plan.placement.lanes, N)
        on_devices = jax.device_put(batch, run.plan.placement.batch_sharding)
        state, metrics = step(state, on_devices, run.program.numbers.at(update))
        metrics |= run.program.numbers.reported(update)
        history.append(jax.device_get((state, metrics)))
    return kind, history


def test_a_large_minibatch_is_the_mean_over_its_workers(trained, written_out):
    """Parameters after each update: gradients averaged, decay, Nesterov momentum, the rate."""
    _, history = trained
    for update, ((state, _), expected) in enumerate(zip(history, written_out, strict=True)):
        found = leaves(state.params)
        assert found.keys() == expected.params.keys()
        for path, value in expected.params.items():
            np.testing.assert_allclose(
                found[path], value, rtol=0, atol=TOLERANCE, err_msg=f"{path} after {update}"
            )
        assert state.update_index == update + 1


def test_running_averages_move_once_an_update(trained, written_out):
    """r <- 0.9 r + 0.1 * (mean_j, biased var_j averaged, or mean(var) + var(mean))."""
    kind, history = trained
    for (state, _), expected in zip(history, written_out, strict=True):
        found = leaves(state.batch_stats)
        assert found.keys() == expected.running[kind].keys()
        for path, value in expected.running[kind].items():
            np.testing.assert_allclose(found[path], value, rtol=0, atol=TOLERANCE, err_msg=path)


def test_the_kinds_of_running_variance_differ(written_out):
    """By far more than the tolerance, so the test above tells them apart in every layer."""
    running = written_out[-1].running
    for path, within in running["within"].items():
        difference = np.abs(running["total"][path] - within).max()
        assert difference > 1000 * TOLERANCE if path.endswith("/var") else difference == 0, path


def test_metrics_are_of_this_update(trained, written_out):
    """Loss and error with the parameters before the update, and the rate it was made with."""
    _, history = trained
    for (_, found), (_, _, expected) in zip(history, written_out, strict=True):
        assert found.keys() == expected.keys() | {"batch_size", "sgd_noise_scale"}
        assert abs(found["train_loss"] - expected["train_loss"]) < TOLERANCE
        # Multiples of 100 / 256, so they are as good as integers.
        assert found["train_error"] == pytest.approx(expected["train_error"], abs=1e-9)
        assert found["learning_rate"] == pytest.approx(expected["learning_rate"], rel=4 * EPS)
        assert abs(found["gradient_norm"] - expected["gradient_norm"]) < TOLERANCE
        assert found["skipped"] == expected["skipped"]
        assert found["batch_size"] == WORKERS * N
        # Smith et al. 2018: eta N / (B (1 - m))
        noise = expected["learning_rate"] * 4096 / (WORKERS * N * (1 - MOMENTUM))
        assert found["sgd_noise_scale"] == pytest.approx(noise, rel=8 * EPS)


def hurt(run, what: str):
    """The program of a worker whose loss, or whose gradient alone, is not finite."""

    def worker(params, *others):
        result = run.plan.worker(params, *others)
        square = jnp.sum(params["classifier"]["bias"] ** 2)
        # The derivative of a square root at 0 times 0 is not a number.
        wrong = jnp.log(-square) if what == "loss" else jnp.sqrt(0.0 * square)
        return result._replace(loss=result.loss + wrong)

    plan = dataclasses.replace(run.plan, worker=worker)
    return Program(plan)


@pytest.mark.parametrize("what", [pytest.param("loss", marks=pytest.mark.long), "gradient"])
def test_an_update_that_is_not_finite_changes_nothing_but_the_counters(start, what):
    run = run_on(2)
    step = hurt(run, what).compile_train_step()
    batch = {k: x[None] for k, x in minibatch(0).items()}
    batch = jax.device_put(batch, run.plan.placement.batch_sharding)
    state = jax.device_put(start, run.plan.placement.replicated)
    numbers = run.program.numbers
    for skipped in (1, 2):
        state, metrics = step(state, batch, numbers.at(skipped - 1))
        assert np.isfinite(metrics["train_loss"]) == (what == "gradient")
        assert np.isfinite(metrics["gradient_norm"]) == (what == "loss")
        assert metrics["skipped"] == skipped
    found = jax.device_get(state)
    assert (found.update_index, found.skipped) == (2, 2)
    for name in ("params", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(start, name))
    state, metrics = run.program.compile_train_step()(state, batch, numbers.at(2))  # and on it goes
    assert (state.update_index, metrics["skipped"]) == (3, 2)
    assert (
        leaves(state.params)["classifier/bias"].tolist()
        != start.params["classifier"]["bias"].tolist()
    )


# --- classes that are wrong ------------------------------------------------------------------


def by_sorting(k: int, logits, labels) -> list[bool]:
    """The label is not among the first k classes, ordered by logit, equal ones by class."""
    wrong = []
    for row, label in zip(np.asarray(logits).tolist(), np.asarray(labels).tolist()):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        wrong.append(label not in order[:k])
    return wrong


@pytest.mark.parametrize("k", [1, 2, 5, 7, 9])
def test_wrong_at_k_is_by_sorting(k):
    """With few values, so that most rows have ties; also for k as large as the classes, or more."""
    random = np.random.default_rng(k)
    for logits in (random.normal(size=(200, 7)), random.integers(0, 3, (200, 7)).astype(float)):
        labels = random.integers(0, 7, 200, np.int32)
        found = wrong_at(k, jnp.asarray(logits), jnp.asarray(labels))
        assert found.dtype == jnp.bool_
        assert found.tolist() == by_sorting(k, logits, labels)


def test_equal_logits_are_right_for_the_first_k_classes():
    """A network that says the same of all classes is not right about every one of them."""
    found = wrong_at(2, jnp.zeros((4, 4)), jnp.arange(4))
    assert found.tolist() == [False, False, True, True]


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("place", range(3))
def test_logits_that_are_not_numbers_are_wrong(k, place):
    """Wherever the NaN stands, and whatever the label."""
    logits = np.array([[3.0, 2.0, 1.0]] * 3)
    logits[:, place] = np.nan
    assert wrong_at(k, jnp.asarray(logits), jnp.arange(3)).tolist() == [True] * 3


def test_infinite_logits_are_ordered():
    logits = jnp.asarray([[jnp.inf, 0.0, -jnp.inf]] * 3)
    assert wrong_at(1, logits, jnp.arange(3)).tolist() == [False, True, True]
    assert wrong_at(2, logits, jnp.arange(3)).tolist() == [False, False, True]


# --- evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 3])
def test_eval_step_sums_over_the_examples_that_count(start, devices):
    """Against one example after the other, skipping those that are masked."""
    run = run_on(devices)
    slots, each = devices * run.plan.placement.lanes, 5
    random = np.random.default_rng(5)
    batch = {
        "image": random.integers(0, 256, (1, slots, each, SIZE, SIZE, 3), dtype=np.uint8),
        "label": random.integers(0, CLASSES, (1, slots, each), np.int32),
        "mask": random.random((1, slots, each)) < 0.6,
    }
    on_devices = jax.device_put(batch, run.plan.placement.batch_sharding)
    found = run.program.eval_step()(start.params, start.batch_stats, on_devices)

    variables = {"params": start.params, "batch_stats": start.batch_stats}
    images = standardise(batch["image"].reshape(-1, SIZE, SIZE, 3))
    logits = np.asarray(
        jax.jit(functools.partial(run.plan.network.module.apply, train=False))(variables, images)
    )
    labels, mask = batch["label"].ravel(), batch["mask"].ravel()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counted = np.flatnonzero(mask)
    loss = sum(-np.log(probabilities[i, labels[i]]) for i in counted)
    wrong, wrong_top5 = (
        sum(itertools.compress(by_sorting(k, logits, labels), mask)) for k in (1, 5)
    )
    assert 0 < wrong_top5 < wrong < len(counted) < len(mask)
    counts = {"error": wrong, "error_top5": wrong_top5, "examples": len(counted)}
    assert found.keys() == {"loss", *counts}
    assert {name: found[name] for name in counts} == counts
    # The loss has no label smoothing. Forward only, so within the tolerance of an update.
    np.testing.assert_allclose(found["loss"], loss, rtol=TOLERANCE)


def test_eval_step_leaves_out_what_is_masked_whatever_it_holds(start):
    """Even a loss that is not a number."""
    run = run_on(1)
    shape = (1, WORKERS, 2)
    batch = {
        "image": np.zeros((*shape, SIZE, SIZE, 3), np.uint8),
        "label": np.zeros(shape, np.int32),
    }
    nan = jax.tree.map(lambda x: np.full_like(x, np.nan), start.params)
    step = run.program.eval_step()
    names = ("loss", "error", "error_top5", "examples")
    for mask, expected in ((False, (0, 0, 0, 0)), (True, (np.nan, 16, 16, 16))):
        masked = {**batch, "mask": np.full(shape, mask)}
        sums = step(
            nan, start.batch_stats, jax.device_put(masked, run.plan.placement.batch_sharding)
        )
        np.testing.assert_array_equal([float(sums[name]) for name in names], expected)
