"""Says what an optimizer is made of: a transformation, and the numbers of each of its updates.

A transform holds the structure: which terms there are, and in which order. Its numbers (the rate,
the momentum, ...) are scalars that each update is told by keyword. So runs whose numbers differ
share one compiled program, and no transform has to know of schedules or count its updates.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from lbsgd.schedule.functions import Schedule, library_of

# What varies, or may be set anew by `optax.inject_hyperparams`, which hands over arrays.
Number = ArrayLike | Schedule


class Rule(NamedTuple):
    """Holds an optimizer: its transformation, and the numbers that each update of it takes.

    Attributes:
      transform: whose `update` takes the numbers by keyword, and `update_index`, t from 0.
      numbers: by keyword; a schedule is a function of the update index.
    """

    transform: optax.GradientTransformationExtraArgs
    numbers: Mapping[str, Number]

    def numbers_at(self, update_index: ArrayLike) -> dict[str, Float[Array, ""]]:
        """Computes the numbers of an update, scalars of JAX's float type."""
        kind = jnp.result_type(float)
        return {
            # Within what is compiled too, where a schedule of optax may give a Python number.
            name: jnp.asarray(value(update_index) if callable(value) else value).astype(kind)
            for name, value in self.numbers.items()
        }


class CountedState(NamedTuple):
    """Holds what `counted` keeps.

    Attributes:
      update_index: t of the next update, an int32 scalar.
      inner: the state of the rule's transform.
    """

    update_index: Int[Array, ""]
    inner: Any


def counted(rule: Rule) -> optax.GradientTransformationExtraArgs:
    """Makes an ordinary optax transformation of a rule, which counts its updates.

    An update that is given the keyword `update_index` is that one, and the count goes on from it.
    """

    def init(params: Any) -> CountedState:
        return CountedState(jnp.zeros((), jnp.int32), rule.transform.init(params))

    def update(
        gradient: Any,
        state: CountedState,
        params: Any = None,
        *,
        update_index: ArrayLike | None = None,
        **others: Any,
    ) -> tuple[Any, CountedState]:
        t = (
            state.update_index
            if update_index is None
            else jnp.asarray(update_index).astype(jnp.int32)
        )
        # Ours count more: what a chain passes to all of its members may have other numbers.
        keywords = {**others, **rule.numbers_at(t), "update_index": t}
        changes, inner = rule.transform.update(gradient, state.inner, params, **keywords)
        return changes, CountedState(optax.safe_increment(t), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def is_on(number: Number) -> bool:
    """Tells whether a number counts: a plain 0 leaves its term out, arrays and schedules do not."""
    # By the type alone: whether an array that is being traced is 0 cannot be known.
    return not (isinstance(number, int | float | np.number) and number == 0)


def last(learning_rate: Number) -> Number:
    """Makes the schedule of the last update's rate; the first has none before it, but its own.

    Raises:
      ValueError: the rate is an array, of which it is not known what it was before.
    """
    if callable(learning_rate):
        # Computed again, not kept: a run that resumes elsewhere has the same.
        return lambda t: learning_rate(library_of(t).maximum(library_of(t).asarray(t) - 1, 0))
    if isinstance(learning_rate, int | float | np.number):
        return learning_rate
    raise ValueError(
        "momentum correction compares the rate with that of the last update, which an array does "
        "not tell; give the schedule itself (to optax.inject_hyperparams with "
        "static_args='learning_rate')"
    )


def in_proportion(number: Number, learning_rate: Number) -> Number:
    """Makes a schedule of a number that is in proportion to the rate: number at its first rate.

    Raises:
      ValueError: the rate is an array, or starts at 0.
    """
    if not callable(learning_rate):
        return number
    first = float(learning_rate(np.int32(0)))
    if not first:
        raise ValueError("what is in proportion to the learning rate needs one that starts above 0")

    def at(t: ArrayLike) -> Any:
        value = number(t) if callable(number) else number
        return value * learning_rate(t) / first

    return at
