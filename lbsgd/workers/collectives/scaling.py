"""Scales a bucket by a power of two to cross in float16, whose range is small."""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

# Of a sum in float16, which holds 65504: what is over is for the roundings of float32.
MOST = 60000.0
# The largest relative error of a rounding to float16.
UNIT = 2.0**-11
# Of a power of two and its inverse, which float32 must hold.
MOST_EXPONENT = 126


def float16_scale(
    x: Float32[Array, " n"], axis: Any, roundings: int
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Computes s = 2^floor(log2(60000 / sum over ranks of each one's max |x|)), and 1 / s.

    No partial sum of s x is larger than that of the maxima, so none overflows; and the largest
    gradients come to lie just there, so that as few as possible vanish. Numbers that are not finite
    have no say. All ranks have the same s, of one scalar that they sum.

    Args:
      x: this rank's.
      axis: names of the mesh axes whose devices are the ranks.
      roundings: of a partial sum, each of which may make it larger.
    """
    most = MOST / (1.0 + UNIT) ** roundings
    own = jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0))
    total = lax.psum(own, axis)
    exponent = _whole_log2(most, total)
    # Where float32 cannot hold the sum it is at most so many times 2^128.
    beyond = math.floor(math.log2(most / lax.axis_size(axis))) - 128
    exponent = jnp.where(jnp.isfinite(total), exponent, beyond)
    # XLA may multiply by 1 / s / ranks at once, which float32 must hold too.
    spread = math.ceil(math.log2(lax.axis_size(axis)))
    exponent = jnp.clip(exponent, -MOST_EXPONENT, MOST_EXPONENT - spread)
    return _power_of_two(exponent), _power_of_two(-exponent)


def _whole_log2(above: float, below: Float[Array, ""]) -> Int[Array, ""]:
    """Computes floor(log2(above / below)), though the quotient may overflow float32."""
    mantissa, exponent = math.frexp(above)
    other_mantissa, other_exponent = jnp.frexp(below)
    return exponent - other_exponent - (other_mantissa > mantissa).astype(jnp.int32)


def _power_of_two(exponent: Int[Array, ""]) -> Float32[Array, ""]:
    """Computes 2^exponent in float32, exactly, from -126 to 127; `jnp.exp2` is not everywhere."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
