"""Times in a config as updates: lengths, intervals, and what is too short."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partial_config import config_with

from lbsgd.run.config import default_config, resolve
from lbsgd.schedule.timeline import Timeline
from lbsgd.schedule.times import duration, every, total
from lbsgd.system.errors import ConfigError

TIMELINE = Timeline.constant(1_281_167, 8192)


@pytest.mark.parametrize(
    ("keys", "update"),
    [
        ({}, 0),
        ({"total_epochs": 90.0}, 14075),
        ({"total_epochs": 5.0}, 782),
        ({"total_epochs": np.float64(5)}, 782),
        ({"total_steps": 1234}, 1234),
        ({"total_examples": 5 * 1_281_167}, 782),
        ({"total_examples": 3 * 8192 + 4096}, 4),  # 3.5, a tie
        ({"total_examples": 2 * 8192 + 4096}, 2),
    ],
)
def test_duration(keys, update):
    assert duration(resolve(config_with(**keys)), "total", TIMELINE) == update


def _twice(name: str) -> list[dict[str, float]]:
    times = {f"{name}_epochs": 1.0, f"{name}_steps": 2, f"{name}_examples": 3}
    return [{k: v for k, v in times.items() if k != out} for out in times] + [times]


@pytest.mark.parametrize("keys", _twice("total"))
def test_total_given_twice_is_an_error(keys):
    config = config_with(**{"total_epochs": 0.0, "total_steps": 0, "total_examples": 0, **keys})
    with pytest.raises(ConfigError, match="say the same thing; set all but one to 0") as error:
        resolve(config)
    assert all(f"{key}={value}" in str(error.value) for key, value in keys.items())


@pytest.mark.parametrize("group", ["evaluation", "checkpoint"])
@pytest.mark.parametrize("keys", _twice("every"))
def test_interval_given_twice_is_an_error(group, keys):
    config = config_with(**{f"{group}.{key}": value for key, value in keys.items()})
    with pytest.raises(ConfigError, match="say the same thing; set all but one to 0"):
        resolve(config)


def test_warmup_given_twice_is_an_error():
    """By adding steps to the epochs of the default."""
    config = config_with(**{"learning_rate.warmup_steps": 100})
    with pytest.raises(ConfigError, match=r"warmup_epochs=5.0 and warmup_steps=100 say the same"):
        resolve(config)


def comes_round(update: int, interval: Fraction, batch_size: int) -> bool:
    """Whether a multiple of `interval` examples is nearer to `update` than to its neighbours.

    One half-way between two updates belongs to the even one.
    """
    seen = update * batch_size
    before = seen // interval
    for multiple in (before * interval, (before + 1) * interval):
        distance = abs(2 * (seen - multiple))
        if multiple and (distance < batch_size or (distance == batch_size and update % 2 == 0)):
            return True
    return False


def found_every(key: str, value: float, timeline: Timeline, total: int) -> frozenset[int]:
    config = resolve(config_with(**{f"evaluation.{key}": value}))
    return every(config, "evaluation", timeline, total)


@given(st.integers(1, 500), st.integers(1, 60), st.integers(0, 5000), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_every_so_many_epochs(num_examples, batch_size, more, total):
    """Of intervals of an update or more, by a look at each update."""
    thousandths = -(-1000 * batch_size // num_examples) + more
    interval = Fraction(thousandths, 1000) * num_examples
    timeline = Timeline.constant(num_examples, batch_size)
    expected = {t for t in range(1, total + 1) if comes_round(t, interval, batch_size)}
    assert found_every("every_epochs", thousandths / 1000, timeline, total) == expected


@given(st.integers(1, 60), st.integers(0, 500), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_every_so_many_examples(batch_size, more, total):
    interval = batch_size + more
    expected = {t for t in range(1, total + 1) if comes_round(t, Fraction(interval), batch_size)}
    timeline = Timeline.constant(77, batch_size)
    assert found_every("every_examples", interval, timeline, total) == expected


def test_intervals_add_up_as_written():
    """Three tenths of an epoch of 15 are 4.5 updates, a tie; 3 * 0.1 in floats is a little more."""
    expected = {2, 3, 4, 6, 8, 9, 10, 12}  # 1.5, 3, 4.5, ...
    assert found_every("every_epochs", 0.1, Timeline.constant(15, 1), 12) == expected


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 31, 100])
def test_every_so_many_steps(steps):
    expected = {t for t in range(1, 31) if t % steps == 0}
    assert found_every("every_steps", steps, TIMELINE, 30) == expected


def test_interval_shorter_than_an_update_is_an_error():
    message = "evaluation.every_epochs=0.1: 0.1 epochs of 100 images are less than one update of 50"
    with pytest.raises(ConfigError, match=re.escape(message)):
        found_every("every_epochs", 0.1, Timeline.constant(100, 50), 12)


TOO_SHORT = {
    (
        "total",
        "epochs",
        10.0,
    ): "10 epochs of 3 images are less than one update of 64; raise total",
    (
        "total",
        "epochs",
        1.0,
    ): "1 epoch of 3 images is less than one update of 64; raise total",
    ("total", "epochs", 21.0): "21 epochs of 3 images are less than one update of 64",
    ("total", "examples", 63): "63 examples are less than one update of 64; raise total_examples",
}


@pytest.mark.parametrize(("name", "unit", "number"), TOO_SHORT)
def test_training_of_less_than_an_update_says_so(name, unit, number):
    config = resolve(config_with(**{"total_epochs": 0.0, f"{name}_{unit}": number}))
    timeline = Timeline.constant(3, 64)
    with pytest.raises(ConfigError, match=re.escape(TOO_SHORT[name, unit, number])):
        total(config, timeline)


@pytest.mark.parametrize(("key", "number"), [("epochs", 22.0), ("examples", 64), ("steps", 1)])
def test_training_of_one_update_is_one(key, number):
    config = resolve(config_with(**{"total_epochs": 0.0, f"total_{key}": number}))
    assert total(config, Timeline.constant(3, 64)) == 1


def test_training_without_a_length_is_an_error():
    with pytest.raises(ConfigError, match="no length; set total_epochs, total_steps or total_ex"):
        total(resolve(config_with(total_epochs=0.0)), TIMELINE)


@pytest.mark.parametrize(("unit", "number"), [("epochs", 5.0), ("examples", 20)])
def test_a_time_that_is_no_update_says_so(unit, number):
    config = default_config().learning_rate
    config.update({"warmup_epochs": 0.0, f"warmup_{unit}": number})
    message = f"learning_rate.warmup_{unit}={number}: .* are less than one update of 64; make it"
    with pytest.raises(ConfigError, match=message):
        duration(config, "warmup", Timeline.constant(3, 64), "learning_rate.")


def test_no_interval_never_comes_round():
    assert every(resolve(default_config()), "evaluation", TIMELINE, 100) == frozenset()


# Keys, and the updates of 100 examples in minibatches of 10 up to 60 after which it comes round.
OFFSETS = {
    "epochs": ({"every_epochs": 2.0, "offset_epochs": 1.0}, {10, 30, 50}),
    "steps": ({"every_steps": 25, "offset_steps": 3}, {3, 28, 53}),
    "examples": ({"every_examples": 250, "offset_examples": 104}, {10, 35, 60}),
    "as long as the interval": ({"every_epochs": 2.0, "offset_epochs": 2.0}, {20, 40, 60}),
    "longer than the interval": ({"every_epochs": 1.0, "offset_epochs": 4.0}, {40, 50, 60}),
    "past the end": ({"every_epochs": 1.0, "offset_epochs": 6.1}, set()),
    "none": ({"every_epochs": 2.0}, {20, 40, 60}),
    "of no interval": ({"offset_epochs": 2.0}, set()),
    "added up as written": ({"every_epochs": 1.1, "offset_epochs": 2.2}, {22, 33, 44, 55}),
}


@pytest.mark.parametrize("name", OFFSETS)
def test_the_first_of_several_is_at_the_offset(name):
    keys, expected = OFFSETS[name]
    config = resolve(config_with(**{f"evaluation.{key}": value for key, value in keys.items()}))
    assert every(config, "evaluation", Timeline.constant(100, 10), 60) == expected


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"every_steps": 4, "offset_epochs": 2.0},
            "evaluation.offset_epochs=2.0, but evaluation.every_steps; give both in the same unit",
        ),
        (
            {"every_epochs": 4.0, "offset_epochs": 0.01},
            "evaluation.offset_epochs=0.01: 0.01 epochs of 100 images are less than one update of "
            "10; make it longer, or 0",
        ),
    ],
)
def test_an_offset_without_a_meaning_is_an_error(keys, says):
    config = resolve(config_with(**{f"evaluation.{key}": value for key, value in keys.items()}))
    with pytest.raises(ConfigError) as error:
        every(config, "evaluation", Timeline.constant(100, 10), 60)
    assert str(error.value) == says


@pytest.mark.parametrize("keys", _twice("offset"))
def test_an_offset_given_twice_is_an_error(keys):
    config = config_with(**{f"evaluation.{key}": value for key, value in keys.items()})
    with pytest.raises(ConfigError, match="say the same thing; set all but one to 0"):
        resolve(config)
