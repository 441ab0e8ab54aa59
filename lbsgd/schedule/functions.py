"""Makes learning rate schedules; only here does a batch size become a learning rate.

Schedules are optax's: functions of the update index t (from 0) that give the rate of that update.
They are built from parts, `gradual_warmup(decay(...))`, each a pure function of t.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Values = jax.Array | np.ndarray
# Of one update index a scalar, of an array of them an array of the same shape.
Schedule = Callable[[jax.typing.ArrayLike], Float[Values, "..."]]


def scale_learning_rate(
    reference_learning_rate: float, reference_batch_size: int, batch_size: int, rule: str
) -> float:
    """Scales the learning rate to `batch_size` (Goyal et al. 2017, section 2.1 and Table 2a).

    Args:
      rule: "linear" (rate in proportion to the batch size), "sqrt" or "none".

    Raises:
      KeyError: no such rule.
    """
    ratio = batch_size / reference_batch_size
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[rule]
    return reference_learning_rate * factor


def _float(update_index: jax.typing.ArrayLike) -> Float[Values, "..."]:
    """Converts update indices to the type that rates are computed in."""
    return library_of(update_index).asarray(update_index).astype(jnp.result_type(float))


def library_of(update_index: jax.typing.ArrayLike) -> Any:
    """Returns numpy for arrays of numpy, in which nothing has to be compiled, and else JAX's."""
    return np if isinstance(update_index, np.ndarray) else jnp


def _fraction(time: Float[Values, "*times"], start: float, end: float) -> Float[Values, "*times"]:
    """Computes which part of the time from start to end is over, from 0 to 1."""
    # A decay of no length is over at once; divided by its length it would be no number.
    return library_of(time).clip((time - start) / max(end - start, 1), 0.0, 1.0)


def constant(rate: float) -> Schedule:
    """Keeps the same rate throughout."""
    return lambda update_index: library_of(update_index).full_like(_float(update_index), rate)


def piecewise(boundaries: Sequence[int], levels: Sequence[float]) -> Schedule:
    """Takes levels[number of boundaries at or before update t]; boundaries do not decrease."""

    def schedule(update_index: jax.typing.ArrayLike) -> Float[Values, "..."]:
        library, kind = library_of(update_index), jnp.result_type(float)
        at = library.asarray(boundaries, kind)
        passed = library.searchsorted(at, _float(update_index), side="right")
        return library.asarray(levels, kind)[passed]

    return schedule


def step_decay(rate: float, boundaries: Sequence[int], factor: float) -> Schedule:
    """Decays in steps: rate * factor^(number of boundaries at or before update t).

    Args:
      boundaries: update indices that increase.
    """
    return piecewise(boundaries, [rate * factor**n for n in range(len(boundaries) + 1)])


def cosine_decay(rate: float, start: float, end: float, clock: Schedule = _float) -> Schedule:
    """Decays by half a cosine from `rate` at time `start` to 0 at `end`.

    Loshchilov and Hutter 2017, without restarts.

    Args:
      clock: update index -> time; the index itself unless the batch size changes.
    """

    def schedule(update_index: jax.typing.ArrayLike) -> Float[Values, "..."]:
        angle = math.pi * _fraction(clock(update_index), start, end)
        return rate * 0.5 * (1.0 + library_of(angle).cos(angle))

    return schedule


def polynomial_decay(
    rate: float,
    start: float,
    end: float,
    power: float,
    end_rate: float = 0.0,
    clock: Schedule = _float,
) -> Schedule:
    """Decays by a power: end_rate + (rate - end_rate) * (1 - (t - start) / (end - start))^power.

    Args:
      clock: update index -> time t; the index itself unless the batch size changes.
    """

    def schedule(update_index: jax.typing.ArrayLike) -> Float[Values, "..."]:
        left = 1.0 - _fraction(clock(update_index), start, end)
        return end_rate + (rate - end_rate) * left**power

    return schedule


def product(first: Schedule, second: Schedule) -> Schedule:
    """Multiplies one schedule by another."""
    return lambda update_index: first(update_index) * second(update_index)


def gradual_warmup(
    after: Schedule,
    start_rate: float,
    full_rate: float,
    length: float,
    power: float = 1.0,
    clock: Schedule = _float,
) -> Schedule:
    """Warms up by a constant increment per update, from the reference rate or another.

    Goyal et al., section 2.2. Time t < W has start_rate + (full_rate - start_rate) * (t / W)^power;
    from W on it is `after`. Powers other than 1 are of Nado et al. 2021.

    Args:
      length: W.
      clock: update index -> time t; the index itself unless the batch size changes.
    """

    def schedule(update_index: jax.typing.ArrayLike) -> Float[Values, "..."]:
        time = clock(update_index)
        ramp = start_rate + (full_rate - start_rate) * _fraction(time, 0, length) ** power
        return library_of(time).where(time < length, ramp, after(update_index))

    return schedule


def constant_warmup(after: Schedule, start_rate: float, updates: int) -> Schedule:
    """Warms up at the reference rate for W updates, then goes to `after` at once.

    Goyal et al., section 2.2.
    """
    return lambda update_index: library_of(update_index).where(
        _float(update_index) < updates, start_rate, after(update_index)
    )


def approach(start: float, target: float, share: float) -> Schedule:
    """Approaches a target by a share of what is left in each update.

    x_t = (1 - share) x_(t-1) + share target from x_0 = start, in closed form: target + (start -
    target) (1 - share)^t.

    Args:
      share: from 0 to below 1.
    """
    # The power of a number near 1, rounded to float32, would lose digits in proportion to t.
    rate = math.log1p(-share)

    def schedule(update_index: jax.typing.ArrayLike) -> Float[Values, "..."]:
        t = _float(update_index)
        return target + (start - target) * library_of(t).exp(rate * t)

    return schedule


def warmed_decay(decay: float) -> Schedule:
    """Makes the decay of an average over updates: at most (1 + t) / (10 + t) at update t.

    So that the average of the first few updates is not that of the start (as TensorFlow's
    ExponentialMovingAverage has it).
    """

    def schedule(update_index: jax.typing.ArrayLike) -> Float[Values, "..."]:
        t = _float(update_index)
        return library_of(t).minimum(decay, (1.0 + t) / (10.0 + t))

    return schedule
