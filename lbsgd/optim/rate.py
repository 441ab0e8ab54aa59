"""Scales a direction by the learning rate, with the sign that lowers the loss."""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike

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
