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
from jaxtyping import Float

from lbsgd.optim.leaves import Leaf
from lbsgd.schedule.functions import Schedule


class MomentumState(NamedTuple):
    """Holds the buffer u or v, like the parameters."""

    buffer: Any


def _at(decay: float | Schedule, update_index: jax.typing.ArrayLike, like: Leaf) -> Any:
    """Gives m at this update; a schedule's in the type of `like`."""
    # A number takes the array's type by itself; strict promotion refuses float32 beside bfloat16.
    return decay(update_index).astype(like.dtype) if callable(decay) else decay


def _init(params: Any) -> MomentumState:
    """Starts with an empty buffer."""
    # From 0 the first buffer is the first gradient, as in PyTorch.
    return MomentumState(jax.tree.map(jnp.zeros_like, params))


def rate_outside_momentum(
    decay: float | Schedule, *, nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Makes equation (9) without its learning rate: u <- m u + g, which is also the result.

    With Nesterov momentum the result is g + m u (as in torch.optim.SGD).

    The update function needs the keyword `update_index`, t.

    Args:
      decay: m, or a schedule of it.
    """

    def update(
        gradient: Any,
        state: MomentumState,
        params: Any = None,
        *,
        update_index: jax.typing.ArrayLike,
        **_: Any,
    ) -> tuple[Any, MomentumState]:
        def move(g: Float[Leaf, "*shape"], u: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
            return _at(decay, update_index, u) * u + g

        buffer = jax.tree.map(move, gradient, state.buffer)
        result = buffer
        if nesterov:
            result = jax.tree.map(
                lambda g, u: g + _at(decay, update_index, u) * u, gradient, buffer
            )
        return result, MomentumState(buffer)

    return optax.GradientTransformationExtraArgs(_init, update)


def rate_inside_momentum(
    learning_rate: Schedule,
    decay: float | Schedule,
    *,
    nesterov: bool = False,
    correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Makes equation (10), rate included: v <- m c v + eta g, which is also the result.

    With momentum correction c is eta_t / eta_(t-1), the ratio of this update's rate to the
    last one's (1 where the last was 0: the buffer then holds nothing to correct by a ratio);
    without it c is 1. With Nesterov momentum the result is eta g + m v.

    The update function needs the keyword `update_index`, t.

    Args:
      decay: m, or a schedule of it.
    """

    def update(
        gradient: Any,
        state: MomentumState,
        params: Any = None,
        *,
        update_index: jax.typing.ArrayLike,
        **_: Any,
    ) -> tuple[Any, MomentumState]:
        rate = learning_rate(update_index)
        # As scalars, before the arrays: one number to multiply each array by, not three.
        m = _at(decay, update_index, rate)
        # An array even if m is a Python number: it is cast to the type of each buffer below.
        keep = jnp.full_like(rate, m)
        if correction:
            # Computed again, not kept: a run that resumes elsewhere has the same.
            # The first update has none before it: its ratio is 1, and its buffer 0 anyway.
            last = learning_rate(jnp.maximum(jnp.asarray(update_index) - 1, 0))
            usable = last != 0
            # The inner selection keeps JAX, when it looks for NaNs, from finding 0 / 0.
            keep = m * jnp.where(usable, rate / jnp.where(usable, last, 1.0), 1.0)

        def move(g: Float[Leaf, "*shape"], v: Float[Leaf, "*shape"]) -> Float[Leaf, "*shape"]:
            return keep.astype(v.dtype) * v + rate.astype(g.dtype) * g

        buffer = jax.tree.map(move, gradient, state.buffer)
        result = buffer
        if nesterov:
            result = jax.tree.map(
                # Without correction: v has been brought to this rate already.
                lambda g, v: rate.astype(g.dtype) * g + _at(decay, update_index, v) * v,
                gradient,
                buffer,
            )
        return result, MomentumState(buffer)

    return optax.GradientTransformationExtraArgs(_init, update)
