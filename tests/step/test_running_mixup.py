"""Running mixup against a loop over updates, workers and examples in numpy, in every placement."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_text import all_reduces

from lbsgd.optim.chain import build_optimizer
from lbsgd.schedule.functions import constant
from lbsgd.step.numbers import Numbers
from lbsgd.step.running_mixup import Mixed, by_slot, by_worker, running_mixup
from lbsgd.step.train_step import TrainState, train_step
from lbsgd.step.worker import worker_loss
from lbsgd.tasks.classification import classification
from lbsgd.workers.placement import place

K, N, CLASSES, SHAPE = 5, 3, 4, (2, 3, 1)
RATE, SMOOTHING, UPDATES = 0.5, 0.1, 5
# Five workers: with and without idle slots, lanes and steps.
PLACES = [(devices, steps) for devices in (1, 2, 3) for steps in (1, 2)]
SHORT = [(1, 1), (3, 2)]
SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False, "momentum_form": "rate_outside"}
SGD |= {"momentum_correction": True, "weight_decay": 0.0, "weight_decay_form": "coupled"}
SGD |= {"decayed_roles": ("kernel",)}
TASK = classification(CLASSES, label_smoothing=SMOOTHING)


def minibatch(update: int) -> dict[str, np.ndarray]:
    """Examples by worker, `[k, n, ...]`; a box of each second image is erased."""
    random = np.random.default_rng(update)
    boxes = np.tile(np.array([1, 0, 1, 2], np.int32), (K, N, 1))
    boxes[:, ::2, 2] = 0
    return {
        "image": random.integers(0, 256, (K, N, *SHAPE)).astype(np.uint8),
        "label": random.integers(0, CLASSES, (K, N)).astype(np.int32),
        "erase_box": boxes,
        "running_share": random.uniform(0.5, 1.0, (K, N)).astype(np.float32),
    }


def preprocess(images):
    return images.astype(jnp.float64) / 255.0 - 0.5


def network(params, batch_stats, images, key):
    return images.reshape(len(images), -1) @ params["w"], batch_stats


def start() -> np.ndarray:
    return np.random.default_rng(99).normal(size=(6, CLASSES))


# --- the oracle ------------------------------------------------------------------------------


def written_out(batches, bad=()):
    """After each update: the weights, and images and targets by worker; the loss before it."""
    w, images, targets, history = start(), None, None, []
    for update, batch in enumerate(batches):
        mixed_images, mixed_targets = np.zeros((K, N, *SHAPE)), np.zeros((K, N, CLASSES))
        gradient, loss = np.zeros_like(w), 0.0
        for j in range(K):
            for i in range(N):
                x = batch["image"][j, i] / 255.0 - 0.5
                top, left, height, width = batch["erase_box"][j, i]
                x[top : top + height, left : left + width] = 0.0
                t = np.zeros(CLASSES)
                t[batch["label"][j, i]] = 1.0
                if images is not None:
                    share = float(batch["running_share"][j, i])
                    x = share * x + (1 - share) * images[j, i]
                    t = share * t + (1 - share) * targets[j, i]
                mixed_images[j, i], mixed_targets[j, i] = x, t
                smooth = (1 - SMOOTHING) * t + SMOOTHING / CLASSES
                scores = x.ravel() @ w
                p = np.exp(scores) / np.exp(scores).sum()
                loss -= smooth @ np.log(p) / (K * N)
                gradient += np.outer(x.ravel(), p - smooth) / (K * N)
        if update not in bad:
            w, images, targets = w - RATE * gradient, mixed_images, mixed_targets
        history.append((w, images, targets, loss))
    return history


# --- the step --------------------------------------------------------------------------------


def worker(params, batch_stats, numbers, batch, index):
    return worker_loss(
        params,
        batch_stats,
        numbers,
        batch,
        index,
        network=network,
        preprocess=preprocess,
        loss=TASK.loss,
    )


def step_on(placement, mixes: bool = True):
    rule = build_optimizer(constant(RATE), {"w": "kernel"}, **SGD)
    mix = functools.partial(running_mixup, preprocess=preprocess, distributions=TASK.distributions)
    step = functools.partial(
        train_step,
        worker=worker,
        reductions=TASK.reductions,
        optimizer=rule.transform,
        placement=placement,
        of_step={},
        running_mixup=mix if mixes else None,
    )
    return jax.jit(step, donate_argnums=0), rule.transform


def start_on(placement, optimizer, mixes: bool = True) -> TrainState:
    # Arrays of their own, for the state is donated.
    zero, params = functools.partial(jnp.zeros, (), jnp.int32), {"w": jnp.asarray(start())}
    nothing = Mixed(np.zeros((K, N, *SHAPE)), np.zeros((K, N, CLASSES))) if mixes else None
    mixed = jax.device_put(by_slot(nothing, placement), placement.batch_sharding)
    state = TrainState(zero(), params, {}, optimizer.init(params), zero(), mixed=mixed)
    everywhere = jax.device_put(state.replace(mixed=None), placement.replicated)
    return everywhere.replace(mixed=mixed)


def batch_on(placement, batch):
    rows = {key: x[placement.worker_of_slot()] for key, x in batch.items()}
    return jax.device_put(rows, placement.batch_sharding)


def numbers(bad: bool = False) -> Numbers:
    """Of an update; of a bad one a loss that is not a number."""
    smoothing = np.float64(np.nan if bad else SMOOTHING)
    told = {"learning_rate": np.float64(RATE)}
    return Numbers(np.uint32(7), np.int32(0), told, {"label_smoothing": smoothing}, 0.9, 0.0)


@pytest.mark.parametrize("bad", [(), (0, 3)])
@pytest.mark.parametrize(
    ("devices", "steps"),
    [pytest.param(*p, marks=[] if p in SHORT else pytest.mark.long) for p in PLACES],
)
def test_updates_are_those_of_a_loop_in_every_place(devices, steps, bad, x64):
    """Also where updates are skipped, the first among them: what was before them stays."""
    placement = place(K * N, N, devices=devices, accumulation_steps=steps)
    assert (placement.devices, placement.accumulation_steps) == (devices, steps)
    step, optimizer = step_on(placement)
    state = start_on(placement, optimizer)
    batches = [minibatch(update) for update in range(UPDATES)]
    for update, expected in enumerate(written_out(batches, bad)):
        w, images, targets, loss = expected
        state, metrics = step(state, batch_on(placement, batches[update]), numbers(update in bad))
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-9, atol=1e-9)
        stored = jax.device_get(by_worker(state.mixed, placement))
        if images is None:
            assert not np.any(stored.images)
            assert not np.any(stored.targets)
        else:
            np.testing.assert_allclose(stored.images, images, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(stored.targets, targets, rtol=1e-9, atol=1e-9)
        if update not in bad:
            assert float(metrics["train_loss"]) == pytest.approx(loss, rel=1e-9)
        # Idle slots stay copies of workers, and devices keep what is theirs.
        for there, as_stored in zip(state.mixed, by_slot(stored, placement)):
            np.testing.assert_array_equal(there, as_stored)
            assert there.sharding.is_equivalent_to(placement.batch_sharding, there.ndim)
    assert int(state.skipped) == len(bad)


def test_shares_of_1_change_nothing(x64):
    placement = place(K * N, N, devices=2, accumulation_steps=2)
    states = []
    for mixes in (True, False):
        step, optimizer = step_on(placement, mixes)
        state = start_on(placement, optimizer, mixes)
        for update in range(3):
            batch = minibatch(update) | {"running_share": np.ones((K, N), np.float32)}
            state, _ = step(state, batch_on(placement, batch), numbers())
        states.append(state)
    np.testing.assert_allclose(states[0].params["w"], states[1].params["w"], rtol=1e-12)
    assert states[1].mixed is None


def test_devices_exchange_nothing_for_it(x64):
    placement = place(K * N, N, devices=3, accumulation_steps=2)
    texts, reduced = [], []
    for mixes in (True, False):
        step, optimizer = step_on(placement, mixes)
        state = start_on(placement, optimizer, mixes)
        compiled = step.lower(state, batch_on(placement, minibatch(0)), numbers()).compile()
        texts.append(compiled.as_text())
        reduced.append(all_reduces(compiled))
    assert reduced[0] == reduced[1]
    others = r"all-gather|all-to-all|collective-permute|reduce-scatter"
    assert not re.search(others, texts[0])


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [1, 2])
def test_layouts_go_from_placement_to_placement(devices, steps):
    """Bitwise, compiled or not."""
    placement = place(K * N, N, devices=devices, accumulation_steps=steps)
    stored = Mixed(*(np.random.default_rng(1).normal(size=(K, N, 2)) for _ in range(2)))
    there = jax.jit(by_slot, static_argnums=1)(stored, placement)
    slots = (placement.accumulation_steps, placement.devices * placement.lanes)
    assert all(x.shape == (*slots, N, 2) for x in there)
    back = jax.jit(by_worker, static_argnums=1)(there, placement)
    for x, y in zip(back, stored):
        np.testing.assert_array_equal(x, y.astype(np.float32))
    for x, y in zip(by_worker(by_slot(stored, placement), placement), stored):
        np.testing.assert_array_equal(x, y)
