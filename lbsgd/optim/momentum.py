"""Adds momentum, in both forms of Goyal et al. 2017, section 3, with momentum correction.

    (9)   u <- m u + g;            w <- w - eta u      the rate stays outside the buffer
    (10)  v <- m v + eta g;        w <- w - v          the rate is inside it
    (10') v <- m (eta/eta_before) v + eta g            (10) with momentum correction

(9) is what PyTorch and optax.sgd do; (10) is Caffe's. With correction (10) is (9) for any
schedule of positive rates; a rate of 0 empties the buffer of (10), and that of (9) it does not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Float

from lbsgd.optim.leaves import Leaf, in_type_of


class MomentumState(NamedTuple):
    """Holds the buffer u or v, like the parameters."""

    buffer: Any


def _init(params: Any) -> MomentumState:
    """Starts with an empty buffer."""
    # From 0 the first buffer is the first gradient, as in PyTorch.
    return MomentumState(jax.tree.map(jnp.zeros_like, params))


def rate_outside_momentum(*, nesterov: bool = False) -> optax.GradientTransformationExtraArgs:
    """Makes equation (9) without its learning rate: u <- m u + g, which is also the result.

    With Nesterov momentum the result is g + m u (as in torch.optim.SGD).

    The update function needs the keyword `momentum`, m.
    """

    def update(
        gradient: Any,
        state: MomentumState,
        params: Any = None,
        *,
        momentum: ArrayLike,
        **_: Any,
    ) -> tuple[Any, MomentumState]:
        def move(g: Float[Leaf, "*shape"], u: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
            return in_type_of(u, momentum) * u + g

        buffer = jax.tree.map(move, gradient, state.buffer)
        result = buffer
        if nesterov:
            result = jax.tree.map(lambda g, u: g + in_type_of(u, momentum) * u, gradient, buffer)
        return result, MomentumState(buffer)

    return optax.GradientTransformationExtraArgs(_init, update)


def _ratio_of_rates(learning_rate: ArrayLike, last_learning_rate: ArrayLike) -> Any:
    """Divides this update's rate by the last one's; 1 where that was 0."""
    rate, last = jnp.asarray(learning_rate), jnp.asarray(last_learning_rate)
    usable = last != 0
    # The inner selection keeps JAX, when it looks for NaNs, from finding 0 / 0.
    return jnp.where(usable, rate / jnp.where(usable, last, 1.0), 1.0)


def rate_inside_momentum(
    *, nesterov: bool = False, correction: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Makes equation (10), rate included: v <- m c v + eta g, which is also the result.

    With momentum correction c is eta_t / eta_(t-1), the ratio of this update's rate to the
    last one's (1 where the last was 0: the buffer then holds nothing to correct by a ratio);
    without it c is 1. With Nesterov momentum the result is eta g + m v.

    The update function needs the keywords `learning_rate` and `momentum`, and with momentum
    correction `last_learning_rate`, of which the first update has its own.
    """

    def update(
        gradient: Any,
        state: MomentumState,
        params: Any = None,
        *,
        learning_rate: ArrayLike,
        momentum: ArrayLike,
        last_learning_rate: ArrayLike | None = None,
        **_: Any,
    ) -> tuple[Any, MomentumState]:
        keep = momentum
        if correction:
            if last_learning_rate is None:
                raise TypeError("momentum correction needs the keyword last_learning_rate")
            # As scalars, before the arrays: one number to multiply each array by, not three.
            keep = momentum * _ratio_of_rates(learning_rate, last_learning_rate)

        def move(g: Float[Leaf, "*shape"], v: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
            return in_type_of(v, keep) * v + in_type_of(g, learning_rate) * g

        buffer = jax.tree.map(move, gradient, state.buffer)
        result = buffer
        if nesterov:
            result = jax.tree.map(
                # Without correction: v has been brought to this rate already.
                lambda g, v: in_type_of(g, learning_rate) * g + in_type_of(v, momentum) * v,
                gradient,
                buffer,
            )
        return result, MomentumState(buffer)

    return optax.GradientTransformationExtraArgs(_init, update)
