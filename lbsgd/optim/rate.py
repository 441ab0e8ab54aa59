"""Scales by the learning rate, with the sign that lowers the loss, and by multiples of it."""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from lbsgd.optim.leaves import in_type_of


def scale_by_negative_rate() -> optax.GradientTransformationExtraArgs:
    """Turns a direction into a change of the parameters, x <- -eta_t x.

    The update function needs the keyword `learning_rate`.
    """

    def update(
        direction: Any, state: Any, params: Any = None, *, learning_rate: ArrayLike, **_: Any
    ) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: -in_type_of(u, learning_rate) * u, direction), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def negate() -> optax.GradientTransformationExtraArgs:
    """Negates a direction that holds its learning rate already, x <- -x."""

    def update(direction: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: -u, direction), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def multiply_changes(multipliers: PyTree[float]) -> optax.GradientTransformationExtraArgs:
    """Multiplies the change of each parameter p by a constant, x_p <- mu_p x_p.

    It stands last. What an optimizer does with a rate eta is then what it does with mu_p eta: the
    changes that momentum of either form, decay, LARS and LAMB make are in proportion to the rates
    eta_0..eta_t, and momentum correction takes ratios of them, in which a constant cancels.

    Args:
      multipliers: like the parameters.
    """

    def update(change: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        # Where it is 1 no operation is made.
        return jax.tree.map(lambda u, mu: u if mu == 1 else mu * u, change, multipliers), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
