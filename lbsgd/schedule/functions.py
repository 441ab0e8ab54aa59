"""The learning rate: the only place where the batch size becomes a learning rate.

Schedules are optax's: functions of the update index t (from 0) that give the rate of that update.
They are built from parts, `gradual_warmup(decay(...))`, each a pure function of t.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def scale_learning_rate(
    reference_learning_rate: float, reference_batch_size: int, batch_size: int, rule: str
) -> float:
    """The full rate for `batch_size` (Goyal et al. 2017, section 2.1 and Table 2a).

    Args:
      rule: "linear" (rate in proportion to the batch size), "sqrt" or "none".

    Raises:
      KeyError: no such rule.
    """
    ratio = batch_size / reference_batch_size
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[rule]
    return reference_learning_rate * factor


def _float(update: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(update).astype(jnp.result_type(float))


def _fraction(time: jax.Array, start: float, end: float) -> jax.Array:
    return jnp.clip((time - start) / max(end - start, 1), 0.0, 1.0)


def constant(rate: float) -> Schedule:
    """The same rate throughout."""
    return lambda update: jnp.full_like(_float(update), rate)


def piecewise(boundaries: Sequence[int], levels: Sequence[float]) -> Schedule:
    """levels[number of boundaries at or before update t]; boundaries do not decrease."""

    def schedule(update: jax.typing.ArrayLike) -> jax.Array:
        at = jnp.asarray(boundaries, jnp.result_type(float))
        passed = jnp.searchsorted(at, _float(update), side="right")
        return jnp.asarray(levels, jnp.result_type(float))[passed]

    return schedule


def step_decay(rate: float, boundaries: Sequence[int], factor: float) -> Schedule:
    """rate * factor^(number of boundaries at or before update t); boundaries increase."""
    return piecewise(boundaries, [rate * factor**n for n in range(len(boundaries) + 1)])


def cosine_decay(rate: float, start: float, end: float, clock: Schedule = _float) -> Schedule:
    """Half a cosine from `rate` at time `start` to 0 at time `end` (Loshchilov and Hutter 2017).

    Args:
      clock: update -> time; the update itself unless the batch size changes.
    """
    return lambda update: (
        rate * 0.5 * (1.0 + jnp.cos(math.pi * _fraction(clock(update), start, end)))
    )


def polynomial_decay(
    rate: float,
    start: float,
    end: float,
    power: float,
    end_rate: float = 0.0,
    clock: Schedule = _float,
) -> Schedule:
    """end_rate + (rate - end_rate) * (1 - (t - start) / (end - start))^power.

    Args:
      clock: update -> time t; the update itself unless the batch size changes.
    """

    def schedule(update: jax.typing.ArrayLike) -> jax.Array:
        left = 1.0 - _fraction(clock(update), start, end)
        return end_rate + (rate - end_rate) * left**power

    return schedule


def product(first: Schedule, second: Schedule) -> Schedule:
    """One schedule times the other."""
    return lambda update: first(update) * second(update)


def gradual_warmup(
    after: Schedule,
    start_rate: float,
    full_rate: float,
    length: float,
    power: float = 1.0,
    clock: Schedule = _float,
) -> Schedule:
    """Goyal et al., section 2.2: a constant increment per update from the reference rate.

    Time t < W has start_rate + (full_rate - start_rate) * (t / W)^power; from W on it is `after`.
    Powers other than 1 are of Nado et al. 2021.

    Args:
      length: W.
      clock: update -> time t; the update itself unless the batch size changes.
    """

    def schedule(update: jax.typing.ArrayLike) -> jax.Array:
        time = clock(update)
        ramp = start_rate + (full_rate - start_rate) * _fraction(time, 0, length) ** power
        return jnp.where(time < length, ramp, after(update))

    return schedule


def constant_warmup(after: Schedule, start_rate: float, updates: int) -> Schedule:
    """Goyal et al., section 2.2: the reference rate for W updates, then at once `after`."""
    return lambda update: jnp.where(_float(update) < updates, start_rate, after(update))
