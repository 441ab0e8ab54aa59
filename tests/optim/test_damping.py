"""The warmup of the damping, against its recurrence in Python floats."""

import math

import numpy as np
import pytest

from lbsgd.optim.damping import build_damping
from lbsgd.run.config import default_config
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError

N = 1_281_167


def damping_of(batch_size: int = 4096, **keys):
    config = default_config()
    config.batch_size = batch_size
    config.optimizer.update({"name": "spngd", **keys})
    return build_damping(config, Timeline.constant(N, batch_size))


def recurrence(start: float, target: float, length: int, updates: int) -> list[float]:
    """Of Osawa et al., CVPR 2019: lambda <- (1 - a) lambda + a lambda_target."""
    a = 2 * math.log10(start / target) / length
    found = [start]
    for _ in range(updates):
        found.append((1 - a) * found[-1] + a * target)
    return found


LENGTHS = {
    "steps": ({"damping_warmup_steps": 313}, 313),
    "epochs": ({"damping_warmup_epochs": 5.0}, round(5 * N / 4096)),
    "examples": ({"damping_warmup_examples": 40 * 4096}, 40),
}


@pytest.mark.parametrize(("length", "T"), LENGTHS.values(), ids=LENGTHS)
def test_damping_falls_by_a_share_of_what_is_left(x64, length, T):
    schedule = damping_of(damping=2.5e-4, initial_damping=2.5e-2, **length)
    expected = recurrence(2.5e-2, 2.5e-4, T, 3 * T)
    found = schedule(np.arange(3 * T + 1))
    # A rounding for each of the products of the recurrence.
    np.testing.assert_allclose(found, expected, rtol=4 * T * np.finfo(float).eps)
    # Two powers of ten, over T: exp(-4) of the distance is left, a little less as a is not small.
    assert found[T] < 2.5e-4 + 0.02 * 2.5e-2


def test_damping_in_float32_is_that_in_float64_rounded():
    """After thousands of updates too; the exponent itself is rounded twice."""
    T = 10_948
    schedule = damping_of(damping=1e-4, initial_damping=1.0, damping_warmup_steps=T)
    found = np.array([schedule(t) for t in (0, 1, 100, T // 2, T, 2 * T)])
    assert found.dtype == np.float32
    a = 8 / T
    exponents = math.log1p(-a) * np.array([0, 1, 100, T // 2, T, 2 * T])
    expected = 1e-4 + (1.0 - 1e-4) * np.exp(exponents)
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(found, expected, rtol=2 * eps * (2 - exponents.min()))


def test_without_an_initial_one_damping_is_a_number():
    assert damping_of(damping=1e-3) == 1e-3


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "initial_damping=0.1 needs a length"),
        ({"damping_warmup_steps": 9, "damping": 0.1}, r"is not above optimizer\.damping=0\.1"),
        ({"damping_warmup_steps": 9, "damping": 1.0}, "raise it, or set it to 0"),
        ({"damping_warmup_steps": 4, "damping": 1e-3}, "4 updates, too few"),
        ({"damping_warmup_epochs": 1e-4}, "less than one update"),
    ],
)
def test_a_damping_that_cannot_fall_is_an_error(keys, says):
    with pytest.raises(ConfigError, match=says) as error:
        damping_of(initial_damping=0.1, **keys)
    assert "\n" not in str(error.value)
