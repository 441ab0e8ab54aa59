"""Normalises by batch, rectifies and pools 3x3 with stride 2, as one function of its input.

The pooling comes first, for the largest of a window stays so after an increasing function:

    pool(relu(factor (y - mean) + offset)) = relu(factor (pool(y) - mean) + offset)

where the factor is not negative; where it would be, y changes its sign before. So nothing as large
as y but y itself is written and kept, and the sums over the batch that batch norm's gradient is
made of (Ioffe and Szegedy 2015) are of pooled arrays.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lbsgd.models.normalization import along, moments

Normalized = tuple[Float[Array, "*n _ _ c"], Float[Array, " c"], Float[Array, " c"]]


def normalized_pool(
    y: Float[Array, "*n h w c"],
    scale: Float[Array, " c"],
    offset: Float[Array, " c"],
    epsilon: float,
) -> Normalized:
    """Computes `pool(relu(batch_norm(y)))`, with a pixel of padding.

    The gradient of a window goes to the first of its largest pixels, row by row, as that of
    `nn.max_pool` does. They are the largest of y: of a type that rounds, more may be equal once
    they are normalised. Where the scale is exactly 0 all are, and the output has a kink in it: of
    each window, the gradient here is that towards larger scales, by the largest of y, and of the
    layers by themselves that of the first of its pixels, which lies between it and the one towards
    smaller scales.

    Args:
      y: `[..., h, w, c]`, the batch.
      scale, offset: of the type that moments and normalisation are computed in.
      epsilon: added to the variance.

    Returns:
      the output `[..., ceil(h / 2), ceil(w / 2), c]` in the type of y, and mean and biased variance
      of y. No gradient passes by the latter two.
    """
    sign = lax.stop_gradient(jnp.where(scale < 0, -jnp.ones_like(scale), jnp.ones_like(scale)))
    # XLA for TPUs changes the sign where the convolution writes y.
    flipped = along(sign.astype(y.dtype), y) * y
    z, mean, variance = _increasing(flipped, sign * scale, offset, epsilon)
    return z, sign * mean, variance


class _Kept(NamedTuple):
    """Holds what the backward pass needs.

    Attributes:
      y: the input, which the backward pass of what made it does not need.
      pooled: the largest of each window.
      scale, offset: of each feature.
      shift, rest: mean(y) = shift + rest, with the shift near it.
      inverse: 1 / sqrt(variance + epsilon).
    """

    y: Float[Array, "*n h w c"]
    pooled: Float[Array, "*n _ _ c"]
    scale: Float[Array, " c"]
    offset: Float[Array, " c"]
    shift: Float[Array, " c"]
    rest: Float[Array, " c"]
    inverse: Float[Array, " c"]

    def centred(self, y: Float[Array, "*n a b c"]) -> Float[Array, "*n a b c"]:
        """Subtracts the mean: what is near it first, so that large means do not cancel."""
        return y.astype(self.rest.dtype) - along(self.shift, y) - along(self.rest, y)

    def normalized(self) -> Float[Array, "*n _ _ c"]:
        """Computes what is rectified."""
        factor, y = self.scale * self.inverse, self.centred(self.pooled)
        return y * along(factor, y) + along(self.offset, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _increasing(
    y: Float[Array, "*n h w c"],
    scale: Float[Array, " c"],
    offset: Float[Array, " c"],
    epsilon: float,
) -> Normalized:
    """Computes `normalized_pool` for scales that are not negative."""
    return _forward(y, scale, offset, epsilon)[0]


def _forward(
    y: Float[Array, "*n h w c"],
    scale: Float[Array, " c"],
    offset: Float[Array, " c"],
    epsilon: float,
) -> tuple[Normalized, _Kept]:
    found = moments(y, (), scale.dtype)
    inverse = lax.rsqrt(found.variance + epsilon)
    kept = _Kept(y, pool(y), scale, offset, found.shift, found.rest, inverse)
    return (nn.relu(kept.normalized()).astype(y.dtype), found.mean, found.variance), kept


def _backward(
    epsilon: float, kept: _Kept, cotangents: tuple[Any, Any, Any]
) -> tuple[Any, Any, Any]:
    """Computes the gradients of input, scale and offset."""
    y, inverse = kept.y, kept.inverse
    wide, factor = inverse.dtype, kept.scale * inverse
    batch = tuple(range(y.ndim - 1))
    dz = jnp.where(kept.normalized() > 0, cotangents[0], jnp.zeros_like(cotangents[0]))
    total = jnp.sum(dz.astype(wide), batch)
    by_y = jnp.sum(dz.astype(wide) * kept.centred(kept.pooled), batch)
    # factor (dz - sum(dz) / m - (y - mean) sum(dz (y - mean)) inverse^2 / m), dz where y has it.
    m = y.size // y.shape[-1]
    slope = by_y * jnp.square(inverse) / m
    # A TPU has an operation of its own for it, XLA's select-and-scatter.
    (to_largest,) = jax.vjp(pool, y)[1](dz)
    of_y = to_largest.astype(wide) - kept.centred(y) * along(slope, y)
    of_y = (of_y - along(total / m, y)) * along(factor, y)
    return of_y.astype(y.dtype), by_y * inverse, total


_increasing.defvjp(_forward, _backward)


def pool(y: Float[Array, "*n h w c"]) -> Float[Array, "*n _ _ c"]:
    """Takes the largest of each window of 3x3, with stride 2 and a pixel of padding."""
    return nn.max_pool(y, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
