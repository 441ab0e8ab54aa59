"""Holds kernels to a norm (Osawa et al. 2020, section 5.4): w <- w sqrt(2 d_out) / ||w||."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from lbsgd.optim.layerwise import norm
from lbsgd.optim.leaves import Leaf, in_type_of
from lbsgd.optim.masks import Mask, flags, needed

# Of the repository, chainerkfac: a kernel of zeros stays one.
_EPSILON = 1e-9


def rescale_kernels(
    mask: Mask, *, shrink_only: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Changes each kernel so that after the update its norm is sqrt(2 d_out).

    It stands last: it has to see the whole change. d_out is the length of the last axis.

    Args:
      mask: True where a parameter is rescaled: like the parameters, or a function that makes such a
        tree of them.
      shrink_only: kernels whose norm is less stay as they are.
    """

    def rescaled(
        change: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], is_kernel: bool
    ) -> Float[Leaf, "*shape"]:
        if not is_kernel:
            return change
        new = w + change
        size = norm(new)
        scale = math.sqrt(2.0 * w.shape[-1]) / (size + _EPSILON)
        if shrink_only:
            scale = jnp.minimum(scale, 1.0)
        return in_type_of(new, scale) * new - w

    def update(
        changes: Any, state: Any, params: Any = None, **_: Any
    ) -> tuple[Any, optax.EmptyState]:
        params = needed(params, "the rescaling of kernels")
        return jax.tree.map(rescaled, changes, params, flags(mask, params)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
