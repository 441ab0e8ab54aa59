"""Shards: each worker goes through a part of its own, against a run that is counted through."""

import numpy as np
import pytest
from scipy import stats

from lbsgd.data.order import MAX_EXAMPLES, Order, ShardOrder
from lbsgd.run.build import build, plan_run
from lbsgd.run.config import default_config, resolve
from lbsgd.run.explain import explain
from lbsgd.system.errors import ConfigError

TINY = 1e-6
# N, k, n: even and uneven shards, of one example, smaller and larger than the rows of a worker.
CASES = [(12, 3, 2), (13, 3, 2), (103, 4, 5), (7, 7, 3), (9, 7, 1), (50, 1, 8), (1437, 8, 32)]


def streams(order: ShardOrder, updates: int) -> list[list[tuple[int, int]]]:
    """Goes through minibatches row by row: the (epoch, example) that each worker sees, in turn."""
    k, n = order.workers, order.worker_batch_size
    found: list[list[tuple[int, int]]] = [[] for _ in range(k)]
    epochs, examples = order(np.arange(updates * k * n))
    pairs = iter(zip(epochs.tolist(), examples.tolist(), strict=True))
    for _ in range(updates):
        for worker in range(k):
            found[worker] += [next(pairs) for _ in range(n)]
    return found


@pytest.mark.parametrize(("count", "workers", "each"), CASES)
def test_a_worker_sees_its_part_once_an_epoch_and_nothing_else(count, workers, each):
    order = ShardOrder(count, 3, workers, each)
    updates = 3 * -(-count // (workers * each)) + 2
    parts = []
    for stream in streams(order, updates):
        part = {example for _, example in stream}
        parts.append(part)
        for start in range(0, len(stream), len(part)):
            whole = stream[start : start + len(part)]
            assert {epoch for epoch, _ in whole} == {start // len(part)}
            examples = {example for _, example in whole}
            assert len(examples) == len(whole)
            assert examples == part or len(whole) < len(part)  # the last is not through
    assert sorted(example for part in parts for example in part) == list(range(count))
    sizes = [len(part) for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_any_part_in_any_sequence_and_shape_gives_the_same():
    order = ShardOrder(103, 5, 4, 5)
    positions = np.arange(480)
    whole = np.stack(order(positions))
    shuffled = np.random.default_rng(0).permutation(positions)
    for part in np.array_split(shuffled, 7):
        assert (np.stack(order(part)) == whole[:, part]).all()
    folded = np.stack(order(positions.reshape(4, 6, 20)))
    assert folded.dtype == np.int64
    assert (folded.reshape(2, -1) == whole).all()
    assert order(np.zeros((0, 3), int))[1].shape == (0, 3)


def test_a_far_position_needs_none_before_it():
    order = ShardOrder(1000, 0, 10, 4)  # 100 examples a worker are 25 minibatches of 40
    epoch, example = order(np.array(10**9 * 40))
    assert int(epoch) == 10**9 // 25
    near = {int(e) for e in order(np.arange(25) * 40 + np.arange(4)[:, None])[1].ravel()}
    assert int(example) in near


def uniform(counts: np.ndarray) -> bool:
    assert counts.mean() >= 10
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    return statistic < stats.chi2.isf(TINY, counts.size - 1)


def test_which_part_an_example_is_in_is_random():
    """Each pair of 4 examples is as likely as the others to be that of worker 0."""
    pairs = [tuple(sorted(ShardOrder(4, seed, 2, 2)(np.arange(2))[1])) for seed in range(240)]
    counts = np.array([pairs.count(pair) for pair in sorted(set(pairs))])
    assert counts.size == 6
    assert uniform(counts)


@pytest.mark.parametrize("worker", [0, 1])
def test_the_order_within_a_part_is_random_in_each_epoch(worker):
    orders = [stream[1] for stream in _orders_of(worker, epochs=300)]
    counts = np.array([orders.count(order) for order in sorted(set(orders))])
    assert counts.size == 6
    assert uniform(counts)


def _orders_of(worker: int, epochs: int) -> list[tuple[int, tuple[int, ...]]]:
    stream = streams(ShardOrder(6, 1, 2, 3), epochs)[worker]
    return [(i, tuple(x for _, x in stream[i : i + 3])) for i in range(0, len(stream), 3)]


def test_workers_are_shuffled_apart():
    """The ranks of two workers' parts agree where chance has them agree: in one of six."""
    ranks = [
        [tuple(np.argsort(order)) for _, order in _orders_of(worker, epochs=300)]
        for worker in (0, 1)
    ]
    alike = sum(a == b for a, b in zip(*ranks, strict=True))
    low, high = stats.binom.interval(1 - TINY, 300, 1 / 6)
    assert low <= alike <= high


@pytest.mark.parametrize("keys", [(3, 0, 4, 1), (5, 0, 0, 1), (MAX_EXAMPLES + 1, 0, 2, 1)])
def test_no_worker_is_without_a_part(keys):
    with pytest.raises(ValueError, match="make no"):
        ShardOrder(*keys)


# --- in a run ------------------------------------------------------------------------------------


def config_of(**keys: object):
    config = default_config()
    config.update({"batch_size": 64, "worker_batch_size": 16, "total_epochs": 2.0})
    config.model.update({"name": "cifar_resnet8", "width": 0.25})
    config.update_from_flattened_dict({"data.shuffle": "shards", **keys})
    return resolve(config)


@pytest.mark.parametrize(("devices", "steps"), [(1, 1), (2, 2), (4, 1)])
def test_a_run_trains_worker_by_worker_whatever_the_placement(devices, steps):
    run = build(config_of(devices=devices, accumulation_steps=steps, seed=devices))
    batches = run.feed.train_batches()
    expected = ShardOrder(1437, devices, 4, 16)(np.arange(64 * 5, 64 * 6))[1]
    found = batches.examples(5)[1]
    slots = batches.placement(5).worker_of_slot()
    for worker in range(4):
        rows = found[slots == worker]
        assert (rows == expected.reshape(4, 16)[worker]).all()
    # What statistics are computed anew over is a sample of all.
    others = run.feed.other_batches("precise_batch_norm", batches.timeline, batches.placements)
    assert others.order == Order(1437, devices, "precise_batch_norm")


def test_a_plan_says_what_workers_see():
    (line,) = [text for text in explain(plan_run(config_of())) if text.startswith("shuffle")]
    assert "each of 4 workers its own 359 or 360 examples" in line
    lines = explain(plan_run(config_of(**{"data.shuffle": "global"})))
    assert not any(text.startswith("shuffle") for text in lines)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_growth.sizes": (128,), "batch_growth.at_epochs": (1.0,)}, "the batch grows"),
        (
            {"batch_size": 2874, "worker_batch_size": 1, "learning_rate.warmup": "none"},
            "some of 2,874 workers without any of 1,437",
        ),
        ({"data.shuffle": "each"}, "data.shuffle"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        plan_run(config_of(**keys))
