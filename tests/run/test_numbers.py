"""What each update takes as an argument: the schedules' values; no part of the compiled program."""

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from lbsgd import train
from lbsgd.run import numbers
from lbsgd.run.build import build

GROWING = {
    "batch_growth.sizes": (128,),
    "batch_growth.at_steps": (6,),
    "batch_growth.compensate": "momentum",
    "learning_rate.decay": "cosine",
    "label_smoothing": 0.1,
    "ema.decay": 0.9,
}


def test_each_update_takes_what_its_schedules_say(monkeypatch, x64):
    """In whatever blocks they are computed, and asked for in whatever order."""
    monkeypatch.setattr(numbers, "BLOCK", 5)
    run = build(tiny_config(dtype="float64", **GROWING))
    plan, found = run.plan, run.program.numbers
    rule = plan.numbers.optimizer
    for t in (0, 11, 4, 5, 7, 6, 10, 1):
        told = found.at(t)
        assert (int(told.update_index), int(told.seed)) == (t, plan.config.seed)
        for name, value in told.optimizer.items():
            says = rule[name](t) if callable(rule[name]) else rule[name]
            assert float(value) == pytest.approx(float(says), rel=1e-15), name
        last = float(plan.learning_rate.schedule(max(t - 1, 0)))
        assert float(told.optimizer["last_learning_rate"]) == pytest.approx(last, rel=1e-15)
        assert float(told.ema_decay) == pytest.approx(min(0.9, (1 + t) / (10 + t)), rel=1e-15)
        assert float(told.task["label_smoothing"]) == 0.1
        reported = found.reported(t)
        assert reported.keys() == plan.schedules.keys()
        assert reported["batch_size"] == (64 if t < 6 else 128)
        assert reported["learning_rate"] == float(told.optimizer["learning_rate"])
        assert reported["momentum"] == float(told.optimizer["momentum"])
    # An evaluation after the last update takes what that took.
    assert found.at(12).optimizer == found.at(11).optimizer


def test_what_does_not_change_is_sent_to_the_devices_once():
    found = build(tiny_config(**GROWING)).program.numbers
    first, second = found.at(0), found.at(1)
    assert first.seed is second.seed
    assert first.optimizer["weight_decay"] is second.optimizer["weight_decay"]
    assert first.optimizer["learning_rate"] is not second.optimizer["learning_rate"]


OF_LARS = {"optimizer.name": "lars", "optimizer.trust_epsilon": 1e-6, "label_smoothing": 0.1}
OTHER_NUMBERS = {
    "learning_rate.reference_learning_rate": 0.3,
    "learning_rate.warmup_epochs": 0.05,
    "optimizer.momentum": 0.8,
    "optimizer.weight_decay": 3e-4,
    "optimizer.trust_coefficient": 0.01,
    "optimizer.trust_epsilon": 1e-5,
    "label_smoothing": 0.2,
    "batch_norm.momentum": 0.99,
    "ema.decay": 0.99,
    "seed": 5,
}


@pytest.fixture
def compiled(tmp_path):
    """Counts the steps that are compiled, by name; others come from the cache of compilations."""
    usual = {
        "jax_compilation_cache_dir": str(tmp_path / "cache"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {key: getattr(jax.config, key) for key in usual}
    for key, value in usual.items():
        jax.config.update(key, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    yield lambda: sum("train_step" in path.name for path in (tmp_path / "cache").glob("*-cache"))
    for key, value in before.items():
        jax.config.update(key, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def lowered(**keys) -> str:
    """The step as it goes to the compiler."""
    text: str = build(tiny_config(**{**OF_LARS, **keys})).program.lower_train_step().as_text()
    return text


def test_numbers_are_no_part_of_the_step_and_whether_they_are_zero_is():
    text = lowered()
    assert lowered(**OTHER_NUMBERS | {"ema.decay": 0.0}) == text
    # Nothing is computed for what is off.
    assert len(lowered(label_smoothing=0.0)) < len(text)


@pytest.mark.long
def test_runs_that_differ_in_numbers_alone_are_compiled_once(compiled, tmp_path):
    config = tiny_config(**OF_LARS, **{"ema.decay": 0.9, "total_steps": 5})
    outcomes = [train.run(config, tmp_path / "first")]
    assert compiled() == 1
    other = tiny_config(**{**OF_LARS, **OTHER_NUMBERS, "total_steps": 5})
    outcomes.append(train.run(other, tmp_path / "second"))
    assert compiled() == 1
    assert all(outcome.complete for outcome in outcomes)


@pytest.mark.long
@pytest.mark.parametrize("zero", ["optimizer.momentum", "optimizer.weight_decay"])
def test_whether_a_number_is_zero_belongs_to_the_program(zero):
    one, other, none = (lowered(**{zero: value}) for value in (0.1, 0.2, 0.0))
    assert one == other
    assert len(none) < len(one)


@pytest.mark.long
def test_numbers_have_the_type_that_the_run_computes_in(x64):
    for dtype in ("float32", "float64"):
        told = build(tiny_config(dtype=dtype)).program.numbers.at(3)
        assert {x.dtype for x in told.optimizer.values()} == {np.dtype(dtype)}
