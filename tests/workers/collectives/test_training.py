"""A run's gradients go through the all-reduce of its config, and its trajectory is the same."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from ranks import bytes_sent, messages, shape_bytes

from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve, run_keys
from lbsgd.run.explain import explain
from lbsgd.system.errors import ConfigError
from lbsgd.workers.collectives.allreduce import BUCKET_BYTES
from lbsgd.workers.collectives.names import ALGORITHMS
from lbsgd.workers.topology import Topology

UPDATES = 20


def small_run(devices, compute="float64", **keys):
    """A narrow network and 8 workers of 2 examples; `keys` of the group allreduce."""
    config = default_config()
    config.update(
        {
            "dtype": compute,
            "batch_size": 16,
            "worker_batch_size": 2,
            "total_steps": UPDATES,
            "devices": devices,
            "label_smoothing": 0.1,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 16, "warmup_epochs": 0.2},
            "allreduce": keys,
        }
    )
    return build(resolve(config))


def train(run):
    """The losses of all updates, and the final state, by name; and the compiled step's text."""
    step, state, losses = run.program.compile_train_step(), run.program.start(), []
    numbers = run.program.numbers
    for update, batch in enumerate(run.feed.train_batches().between(0, UPDATES)):
        state, metrics = step(state, batch, numbers.at(update))
        losses.append(jax.device_get(metrics) | numbers.reported(update))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get((losses, state)))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, step.as_text()


@functools.cache
def with_psum():
    return train(small_run(1))[0]


@pytest.mark.parametrize(
    ("devices", "keys"),
    [
        pytest.param(d, keys, id=f"{d} {keys['algorithm']}", marks=marks)
        for d, keys, marks in [
            (3, {"algorithm": "binary_blocks", "bucket_mib": 0.02}, pytest.mark.long),
            (4, {"algorithm": "ring"}, pytest.mark.long),
            (8, {"algorithm": "halving_doubling", "bucket_mib": 0.01}, pytest.mark.long),
            (7, {"algorithm": "binary_blocks"}, pytest.mark.long),
            (8, {"algorithm": "torus_2d"}, pytest.mark.long),
            (6, {"algorithm": "hierarchical", "grid": (2, 3)}, pytest.mark.long),
            (5, {"algorithm": "hierarchical"}, pytest.mark.long),
        ]
    ],
)
def test_training_is_that_of_psum(x64, devices, keys):
    expected, (found, text) = with_psum(), train(small_run(devices, **keys))
    assert found.keys() == expected.keys()
    assert ("collective-permute(" in text) != (keys == {"algorithm": "hierarchical"})  # of one host
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", ["own", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_the_gradient_is_sent_once_and_nothing_else(dtype):
    """By ring on two devices in two buckets; loss, error and statistics by one all-reduce."""
    run = small_run(2, "float32", algorithm="ring", dtype=dtype, bucket_mib=0.0125)
    state = jax.eval_shape(run.plan.initial_state)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    assert 1 < 4 * sum(sizes) / (0.0125 * 2**20) <= 2
    text = run.program.compile_train_step().as_text()
    found = messages(text)
    assert len(found) == 2 * 2
    padded = sum(sizes) + sum(sizes) % 2
    assert set(bytes_sent(found, 2)) == {padded * (4 if dtype == "own" else 2)}
    reduced = re.findall(r"= (.*?) all-reduce\(", text)
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    assert sum(map(shape_bytes, reduced)) == 4 * (2 + statistics)


def test_a_run_may_go_on_with_another_all_reduce_but_not_another_type():
    def keys(**changes):
        config = default_config()
        config.update({"total_steps": 1, "allreduce": changes})
        return run_keys(resolve(config))

    other = keys(algorithm="torus_2d", bucket_mib=1.0, grid=(4, 2))
    assert other == keys()
    assert keys(dtype="bfloat16") != keys()


def test_default_buckets_are_those_of_the_function():
    assert Topology(2).bucket_mib(default_config().allreduce) * 2**20 == BUCKET_BYTES
    assert default_config().allreduce.algorithm == ALGORITHMS[0]


@pytest.mark.parametrize(
    ("devices", "keys", "told"),
    [
        (2, {"algorithm": "tree"}, "unknown allreduce.algorithm 'tree'; known: psum"),
        (2, {"dtype": "float32"}, "unknown allreduce.dtype 'float32'; known: own, bfloat16"),
        (2, {"bucket_mib": -1.0}, "allreduce.bucket_mib must be finite and not negative"),
        (2, {"bucket_mib": 1e-5, "algorithm": "ring"}, "more than 1,000 buckets; set it to"),
        (6, {"algorithm": "halving_doubling"}, "a power of two of devices, not 6; take binary"),
        (8, {"algorithm": "torus_2d", "grid": (3, 2)}, r"devices, 8; take e.g. \(4, 2\)"),
        (8, {"algorithm": "torus_2d", "grid": (8, 0)}, "two whole numbers"),
        (8, {"algorithm": "torus_2d", "grid": (4.0, 2.0)}, "two whole numbers"),
        (8, {"algorithm": "torus_2d", "grid": (8,)}, "two whole numbers"),
    ],
)
def test_bad_choices_end_in_one_line(devices, keys, told):
    with pytest.raises(ConfigError, match=told) as error:
        small_run(devices, "float32", **keys)
    assert "\n" not in str(error.value)


def test_the_least_bucket_that_is_named_is_taken():
    with pytest.raises(ConfigError) as error:
        small_run(2, "float32", algorithm="ring", bucket_mib=1e-7)
    least = float(re.search(r"set it to (\S+) or more", str(error.value)).group(1))
    assert math.isfinite(least)
    assert (
        small_run(2, "float32", algorithm="ring", bucket_mib=least).plan.gradient_mean is not None
    )


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({}, None),
        (
            {"algorithm": "torus_2d"},
            "all-reduce: torus_2d over 8 devices, buckets of 32 MiB, 4x2; 8 steps, a device sends "
            "1.75 times the gradient",
        ),
        (
            {"algorithm": "psum", "dtype": "float16", "bucket_mib": 0.5},
            "all-reduce: psum over 8 devices, buckets of 0.5 MiB, sent in float16 times a power of "
            "two and summed in float32",
        ),
    ],
)
def test_explain_says_how(keys, line):
    lines = [text for text in explain(small_run(8, "float32", **keys).plan) if "all-reduce" in text]
    assert lines == ([line] if line else [])
