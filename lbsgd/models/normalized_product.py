"""Normalises the outputs of a 1x1 convolution by their batch, as one function of its input.

For y = x W the moments of the many outputs follow from those of the few inputs:

    mean(y) = mean(x) W,    var(y) = diag(W^T Cov(x) W),

and Cov(x) is one product of x with itself. So y is neither read for its moments nor kept for the
backward pass: it is normalised where it is made. On the way back the sums over the batch of dz and
dz (y - mean), which batch norm's gradient is made of (Ioffe and Szegedy 2015), follow from the
product x^T dz that the kernel's gradient takes anyway. It pays where y is wider than x.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lbsgd.models.normalization import along, shift_of


class _Kept(NamedTuple):
    """Holds what the backward pass needs; all but x is small.

    Attributes:
      x: the input.
      kernel, scale: the parameters.
      shift, rest: mean(x) = shift + rest, with the shift in the type of x.
      cov_kernel: Cov(x) W, for the gradient of the kernel.
      inverse: 1 / sqrt(variance + epsilon).
    """

    x: Float[Array, "*n inputs"]
    kernel: Float[Array, "inputs outputs"]
    scale: Float[Array, " outputs"]
    shift: Float[Array, " inputs"]
    rest: Float[Array, " inputs"]
    cov_kernel: Float[Array, "inputs outputs"]
    inverse: Float[Array, " outputs"]


Normalized = tuple[Float[Array, "*n outputs"], Float[Array, " outputs"], Float[Array, " outputs"]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalized_product(
    x: Float[Array, "*n inputs"],
    kernel: Float[Array, "inputs outputs"],
    scale: Float[Array, " outputs"],
    offset: Float[Array, " outputs"],
    epsilon: float,
    precision: str,
) -> Normalized:
    """Computes batch norm of x W, over all axes but the last.

    W is the kernel in the type of x, and products of 16 bits are summed in the type of the scale,
    which that of moments and of the normalisation is too. Variances are exact to rounding relative
    to |W|^T |Cov(x)| |W|: where an output is a small difference of large inputs, less is left of
    its variance than where it is taken of the outputs themselves.

    Args:
      x: `[..., inputs]`, the batch.
      epsilon: added to the variance.
      precision: of the products with x, as `jax.lax.Precision` names it.

    Returns:
      the output in the type of x, and mean and biased variance of x W. No gradient passes by the
      latter two.
    """
    return _forward(x, kernel, scale, offset, epsilon, precision)[0]


def _forward(
    x: Float[Array, "*n inputs"],
    kernel: Float[Array, "inputs outputs"],
    scale: Float[Array, " outputs"],
    offset: Float[Array, " outputs"],
    epsilon: float,
    precision: str,
) -> tuple[Normalized, _Kept]:
    wide, batch = scale.dtype, tuple(range(x.ndim - 1))
    narrow_kernel = kernel.astype(x.dtype)
    w = narrow_kernel.astype(wide)
    shift = shift_of(x, wide).astype(x.dtype)
    # The mean is of differences that are not rounded; the products' own are as narrow as x.
    rest = jnp.mean(x.astype(wide) - along(shift.astype(wide), x), batch)
    centred = x - along(shift, x)
    second = _over_batch(centred, centred, wide, precision) / _count(x)
    cov_kernel = _small(second - jnp.outer(rest, rest), w)
    mean = _small(shift.astype(wide) + rest, w)
    # Rounding can leave a tiny negative variance where all inputs are equal.
    variance = jnp.maximum(jnp.sum(w * cov_kernel, 0), 0)
    inverse = lax.rsqrt(variance + epsilon)
    factor = scale * inverse
    y = _multiply(x, narrow_kernel, wide, precision)
    # On the product and not in the kernel, which it would round.
    z = y * along(factor, x) + along(offset - mean * factor, x)
    kept = _Kept(x, kernel, scale, shift, rest, cov_kernel, inverse)
    return (z.astype(x.dtype), mean, variance), kept


def _backward(
    epsilon: float, precision: str, kept: _Kept, cotangents: tuple[Any, Any, Any]
) -> tuple[Any, Any, Any, Any]:
    """Computes the gradients of input, kernel, scale and offset.

    With y' = y - mean and m positions, dy = factor (dz - sum(dz) / m - y' t) for t = sum(dz y')
    inverse^2 / m; then dx = dy W^T and dW = x^T dy, with x W in the place of y, so that of all that
    is as large as y only dz is read.
    """
    dz = cotangents[0]
    x, scale, inverse, rest = kept.x, kept.scale, kept.inverse, kept.rest
    wide, m = scale.dtype, _count(x)
    w, factor = kept.kernel.astype(x.dtype).astype(wide), scale * inverse
    centred = x - along(kept.shift, x)
    total = jnp.sum(dz.astype(wide), tuple(range(dz.ndim - 1)))
    # (x - mean(x))^T dz
    product = _over_batch(centred, dz, wide, precision) - jnp.outer(rest, total)
    by_y = jnp.sum(w * product, 0)
    t = by_y * jnp.square(inverse) / m
    of_kernel = (product - m * kept.cov_kernel * along(t, w)) * along(factor, w)
    # dx = dz (factor W)^T - (x - mean(x)) W diag(factor t) W^T - the constant of sum(dz)
    back = _small(w * along(factor * t, w), w.T)
    constant = _small(rest, back) - _small(total * factor / m, w.T)
    # The second product in the type of x: written beside the first, it is read again.
    of_x = _multiply(dz, (w * along(factor, w)).T.astype(x.dtype), wide, precision)
    by_mean = _multiply(centred, back.astype(x.dtype), x.dtype, precision).astype(wide)
    of_x = of_x - by_mean + along(constant, x)
    return (
        of_x.astype(x.dtype),
        of_kernel.astype(kept.kernel.dtype),
        by_y * inverse,
        total,
    )


normalized_product.defvjp(_forward, _backward)


def _count(x: Float[Array, "*n inputs"]) -> int:
    """Counts the positions m that are normalised together."""
    return x.size // x.shape[-1]


def _multiply(
    x: Float[Array, "*n a"], w: Float[Array, "a b"], dtype: Any, precision: str
) -> Float[Array, "*n b"]:
    """Computes x w in a type."""
    how = {"precision": precision, "preferred_element_type": dtype}
    if x.ndim != 4:
        return jnp.matmul(x, w, **how)
    # Matrix products of images have another layout on a TPU than convolutions have, and between
    # the two the images are copied.
    kernel, numbers = jnp.expand_dims(w, (0, 1)), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers, **how)


def _over_batch(
    x: Float[Array, "*n a"], y: Float[Array, "*n b"], dtype: Any, precision: str
) -> Float[Array, "a b"]:
    """Computes x^T y, summed over all positions, in a type."""
    how = {"precision": precision, "preferred_element_type": dtype}
    if x.ndim != 4:
        batch = tuple(range(x.ndim - 1))
        return lax.dot_general(x, y, ((batch, batch), ((), ())), **how)
    # As in `_multiply`; examples take the place of channels, and what is as large as the image is
    # the filter.
    numbers = ("CHWN", "IHWO", "NHWC")
    sums = lax.conv_general_dilated(x, y, (1, 1), "VALID", dimension_numbers=numbers, **how)
    return jnp.squeeze(sums, (1, 2))


def _small(a: Float[Array, "*n c"], b: Float[Array, "c d"]) -> Float[Array, "*n d"]:
    """Multiplies matrices without a batch, as exactly as moments are."""
    return jnp.matmul(a, b, precision="highest")
