"""Convolves and pools, each in the form that compilers make the fastest kernels of.

The numbers are those of the plain forms, `lax.conv_general_dilated` and `nn.max_pool`, but for the
order of sums. All forms are built of operations that JAX differentiates, to any order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int8

from lbsgd.models.roles import Role, with_role

_IMAGES = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k c f"], stride: int, precision: Any = None
) -> Float[Array, "n _ _ f"]:
    """Convolves, padded by k // 2 on every side (as PyTorch pads, not as XLA's "SAME").

    The stem of a ResNet, a wide kernel of stride 2 over three colours, wastes most of the lanes
    that a matrix unit has for channels: it becomes a kernel of half the width and stride 1 over
    blocks of 2x2 pixels (space-to-depth, as of MLPerf's ResNets).

    Args:
      kernel: of an odd width k.
      precision: of the products, as `jax.lax.Precision` names it.
    """
    margin = kernel.shape[0] // 2
    low = high = margin
    if stride == 2 and x.shape[-1] <= 4:
        x, kernel = _blocks(x, margin), _blocks_of_kernel(kernel, margin)
        stride, low, high = 1, (margin + 1) // 2, margin // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((low, high), (low, high)),
        dimension_numbers=_IMAGES,
        precision=precision,
    )


def _blocks(x: Float[Array, "n h w c"], margin: int) -> Float[Array, "n _ _ c4"]:
    """Makes channels of each 2x2 pixels: those of the upper row first, and of the left."""
    n, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    x = x.reshape(n, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], x.shape[3], 4 * channels)


def _blocks_of_kernel(kernel: Float[Array, "k k c f"], margin: int) -> Float[Array, "b b c4 f"]:
    """Makes the kernel over such blocks that gives what `kernel` gives with stride 2."""
    width, _, channels, features = kernel.shape
    # Window i begins at pixel 2 i - margin, which must be the first of a block: zeros before it
    # where it is not, and after it up to a whole number of blocks.
    before = margin % 2
    after = (width + before) % 2
    kernel = jnp.pad(kernel, ((before, after), (before, after), (0, 0), (0, 0)))
    blocks = (width + before + after) // 2
    kernel = kernel.reshape(blocks, 2, blocks, 2, channels, features)
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, 4 * channels, features)


def _largest(x: Float[Array, "n h w c"]) -> tuple[Float[Array, "n _ _ c"], Int8[Array, "n _ _ c"]]:
    """Finds the largest of each 3x3 pixels, and which of the nine comes first of those."""
    first, *others = _nine(x, -jnp.inf)
    largest, where = first, jnp.zeros(first.shape, jnp.int8)
    for number, pixel in enumerate(others, 1):
        # What is not a number is larger than all, so that it is not lost.
        larger = (pixel > largest) | jnp.isnan(pixel)
        largest = jnp.where(larger, pixel, largest)
        where = jnp.where(larger, jnp.int8(number), where)
    return largest, where


def _nine(x: Float[Array, "n h w c"], border: float) -> list[Float[Array, "n _ _ c"]]:
    """Takes the pixels that come first in each window of 3x3, stride 2; second; and so on."""
    height, width = ((side + 1) // 2 for side in x.shape[1:3])
    margin = (0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)
    x = lax.pad(x, jnp.asarray(border, x.dtype), margin)
    rows = [x[:, i : i + 2 * height - 1 : 2] for i in range(3)]
    return [row[:, :, j : j + 2 * width - 1 : 2] for row in rows for j in range(3)]


@jax.custom_jvp
def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n _ _ c"]:
    """Takes the maximum of each 3x3 pixels at stride 2, padded by 1 on every side.

    Its gradient goes to the first of equal maxima, row by row, as PyTorch's and XLA's. Which pixel
    that is, is kept on the way forwards: the way back reads a byte for each maximum, in place of
    comparing all pixels again (as XLA's `SelectAndScatter` does).
    """
    return _largest(x)[0]


@max_pool.defjvp
def _max_pool_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    largest, where = _largest(x)
    # Without this the compiler would find it anew, backwards, from all pixels.
    where = lax.optimization_barrier(where)
    moved = [jnp.where(where == k, pixel, 0) for k, pixel in enumerate(_nine(t, 0.0))]
    return largest, functools.reduce(jnp.add, moved)


class Conv(nn.Module):
    """Convolves, padded by kernel // 2 on every side: see `convolve`.

    Attributes:
      starts_at_zero: its kernel does, and is not He normal.
      use_bias: of networks without normalisation; it starts at 0.
      precision: of its products, as `jax.lax.Precision` names it.
    """

    features: int
    kernel: int
    stride: int = 1
    starts_at_zero: bool = False
    use_bias: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    precision: str = "highest"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n _ _ features"]:
        """Convolves `[n, h, w, c]` to `[n, h / stride, w / stride, features]`."""
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        if self.starts_at_zero:
            init = nn.initializers.zeros
        return _Products(
            (self.kernel, self.kernel, x.shape[-1], self.features),
            self.stride,
            init,
            self.use_bias,
            self.dtype,
            self.param_dtype,
            self.precision,
            name="conv",
        )(x)


class _Products(nn.Module):
    """Holds kernel and bias of a convolution, and computes it."""

    shape: tuple[int, ...]
    stride: int
    kernel_init: nn.initializers.Initializer
    use_bias: bool
    dtype: Any
    param_dtype: Any
    precision: str

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n _ _ f"]:
        init = with_role(Role.KERNEL, self.kernel_init)
        kernel = self.param("kernel", init, self.shape, self.param_dtype)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.precision)
        if not self.use_bias:
            return y
        init = with_role(Role.BIAS, nn.initializers.zeros)
        bias = self.param("bias", init, self.shape[-1:], self.param_dtype)
        return y + bias.astype(self.dtype)[None, None, None]
