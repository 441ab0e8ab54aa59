"""Several updates in one call of a compiled program are the updates of calls of one."""

import functools
import re

import numpy as np
import pytest
from tiny_run import UPDATES, final_state, tiny_config

from lbsgd import train
from lbsgd.run.record.metrics import read_metrics
from lbsgd.system.errors import DivergedError

LONG = pytest.mark.long
# Of float64, 2e-16, for sums of some thousand numbers in another order, in twelve updates.
TOLERANCE = 1e-11
TIMED = ("images_per_second", "data_wait_percent")
# Evaluations and checkpoints leave stretches of 4, 1, 3, 2, 2 updates; without, there is one of 12.
FREE = {"evaluation.every_steps": 0, "checkpoint.every_steps": 0}
KINDS = {
    "with all that is due": {"log.every_steps": 2},
    "measured": {
        **FREE,
        "diagnostics.workers.every_steps": 6,
        "diagnostics.confusion.every_steps": 4,
        "diagnostics.confusion.pairs": 2,
        "diagnostics.confusion.batch_size": 16,
    },
    "free": FREE,
    "a batch that grows": {**FREE, "batch_growth.sizes": (128,), "batch_growth.at_steps": (7,)},
    "running mixup, averages": {**FREE, "data.running_mixup": 0.5, "ema.decay": 0.9},
    "images that grow": {
        **FREE,
        "data.augment": "progressive_resizing",
        "data.augment_options": {"end_epoch": 1, "multiple": 2},
        "data.train_examples": 400,
    },
    "accumulated over a ring": {
        **FREE,
        "accumulation_steps": 2,
        "allreduce.algorithm": "ring",
        "batch_norm.synced_workers": 2,
    },
    "LAMB, norms of layers": {
        **FREE,
        "optimizer.name": "lamb",
        "learning_rate.reference_learning_rate": 0.01,
        "diagnostics.layers.every_steps": 5,
    },
    "second order": {
        **FREE,
        "optimizer.name": "spngd",
        "optimizer.stale_threshold": 0.1,
        "optimizer.momentum_form": "rate_outside",
    },
    "images of the devices": {
        **FREE,
        "data.source": "synthetic",
        "data.synthetic_on_device": True,
        "data.image_size": 8,
        "data.crop": "none",
        "data.synthetic_validation_examples": 8,
        "learning_rate.warmup": "none",
    },
}


def config_of(kind: str, updates_per_call: int):
    keys = {"dtype": "float64", **KINDS[kind], "updates_per_call": updates_per_call}
    return tiny_config(**keys)


def record_of(workdir) -> list[dict]:
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMED} for line in lines]


def assert_same_run(config, workdir, expected_config, expected) -> None:
    lines, wanted = record_of(workdir), record_of(expected)
    assert [line.keys() for line in lines] == [line.keys() for line in wanted]
    for line, want in zip(lines, wanted):
        for name, value in want.items():
            number = value is not None  # as of the error of a single measurement
            same = pytest.approx(value, TOLERANCE, TOLERANCE) if number else None
            assert line[name] == same, name
    state, before = final_state(config, workdir), final_state(expected_config, expected)
    assert state.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_allclose(state[name], array, TOLERANCE, TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of the run of a kind that has a call for each update."""

    @functools.cache
    def trained(kind: str):
        folder = tmp_path_factory.mktemp("alone") / "run"
        assert train.run(config_of(kind, 1), folder).complete
        return folder

    return trained


@pytest.mark.parametrize(
    ("kind", "updates_per_call"),
    [
        ("with all that is due", 3),
        pytest.param("with all that is due", 2, marks=LONG),
        pytest.param("with all that is due", 100, marks=LONG),
        *(pytest.param(kind, 3, marks=LONG) for kind in KINDS if kind != "with all that is due"),
        pytest.param("free", 7, marks=LONG),
        pytest.param("free", 12, marks=LONG),
    ],
)
def test_the_run_is_that_of_single_calls(kind, updates_per_call, alone, tmp_path):
    config = config_of(kind, updates_per_call)
    assert train.run(config, tmp_path).complete
    assert_same_run(config, tmp_path, config_of(kind, 1), alone(kind))


@LONG
def test_a_run_that_is_stopped_goes_on_with_calls_of_another_size(alone, tmp_path):
    """It stops between two calls, and saves there."""
    asked = []

    def stop(done: int) -> bool:
        asked.append(done)
        return done >= 4

    assert not train.run(config_of("free", 5), tmp_path, should_stop=stop).complete
    assert asked == [0, 0, 5]
    assert train.run(config_of("free", 3), tmp_path).complete
    assert_same_run(config_of("free", 3), tmp_path, config_of("free", 1), alone("free"))


@LONG
def test_metrics_of_all_updates_are_reported_in_order(tmp_path):
    found = []
    train.run(
        config_of("free", 5), tmp_path, on_metrics=lambda done, values: found.append((done, values))
    )
    updates = [(done, values) for done, values in found if "train_loss" in values]
    assert [done for done, _ in updates] == list(range(1, UPDATES + 1))
    assert all(values["images_per_second"] > 0 for _, values in updates)


@LONG
def test_an_update_that_is_not_finite_is_named_within_a_call(tmp_path):
    keys = {**FREE, "learning_rate.reference_learning_rate": 1e14, "learning_rate.warmup": "none"}
    said = []
    for updates_per_call in (1, 6):
        config = tiny_config(**keys, updates_per_call=updates_per_call)
        with pytest.raises(DivergedError) as error:
            train.run(config, tmp_path / str(updates_per_call))
        said.append(re.findall(r"of update (\d+) is not finite", str(error.value)))
    assert said[0] == said[1] != []
    counted = []
    for updates_per_call in (1, 6):
        workdir = tmp_path / f"skip{updates_per_call}"
        more = {"on_nonfinite": "skip", "max_nonfinite": 99, "updates_per_call": updates_per_call}
        assert train.run(tiny_config(**keys, **more), workdir).complete
        lines = [line for line in record_of(workdir) if "train_loss" in line]
        counted.append([(line["step"], line["skipped"]) for line in lines])
    assert counted[0] == counted[1]
    assert counted[0][-1][1] > 0
