"""Convolutions and poolings of the residual networks, alone and joined with their normalisation.

Two pairs of layers that follow each other may be joined to one function, which moves fewer bytes
and computes the same: `normalized_product` and `normalized_pool`. Parameters, statistics and where
they lie in their trees stay as they are, so a checkpoint does not tell which way it was made.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lbsgd.models.normalization import BatchNorm, Joined
from lbsgd.models.normalized_pool import normalized_pool, pool
from lbsgd.models.normalized_product import normalized_product
from lbsgd.models.roles import Role, with_role


class Conv(nn.Module):
    """Convolves, padded by kernel // 2 on every side (as PyTorch pads, not as XLA's "SAME").

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
    def __call__(self, x: Float[Array, "*n h w c"]) -> Float[Array, "*n _ _ features"]:
        """Convolves `[..., h, w, c]` to `[..., h / stride, w / stride, features]`."""
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        if self.starts_at_zero:
            init = nn.initializers.zeros
        margin = self.kernel // 2
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=((margin, margin), (margin, margin)),
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=with_role(Role.KERNEL, init),
            bias_init=with_role(Role.BIAS, nn.initializers.zeros),
            name="conv",
        )(x)

    def is_widening_product(self, channels: int) -> bool:
        """Tells whether it multiplies each pixel of so many channels by a wider matrix, no more."""
        return (self.kernel, self.stride, self.use_bias) == (1, 1, False) and (
            channels < self.features
        )

    def matrix(self) -> Float[Array, "c features"]:
        """Gives the kernel of such a product, which is there once the network is initialised."""
        kernel: Any = nn.meta.unbox(self.variables["params"]["conv"]["kernel"])
        return jnp.squeeze(kernel, (0, 1))


def average_pool(x: Float[Array, "*n h w c"]) -> Float[Array, "*n _ _ c"]:
    """Averages 2x2 pixels `[..., h, w, c]` to `[..., ceil(h / 2), ceil(w / 2), c]`.

    Beyond an odd side there are no pixels, so its last averages are of fewer.
    """
    odd = [(0, side % 2) for side in x.shape[-3:-1]]
    # An average of pixels and their copies is that of the pixels.
    x = jnp.pad(x, [*[(0, 0)] * (x.ndim - 3), *odd, (0, 0)], mode="edge")
    # Not `nn.avg_pool`, which divides by a whole number: no float, to strict promotion.
    return nn.pool(x, 0.0, lax.add, (2, 2), (2, 2), "VALID") / 4


@jax.custom_vjp
def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes max(x, 0), and keeps that alone for its gradient.

    For the end of a residual block: the next one keeps its output anyway.
    """
    return jnp.maximum(x, jnp.zeros_like(x))


def _relu_and_itself(x: Float[Array, "*shape"]) -> tuple[Any, Any]:
    y = relu(x)
    return y, y


def _where_positive(y: Float[Array, "*shape"], dy: Float[Array, "*shape"]) -> tuple[Any]:
    return (jnp.where(y > 0, dy, jnp.zeros_like(dy)),)


relu.defvjp(_relu_and_itself, _where_positive)


def convolved_and_normalized(
    conv: Conv,
    norm: nn.Module,
    x: Float[Array, "*n h w c"],
    *,
    train: bool,
    joined: bool,
) -> Float[Array, "*n _ _ features"]:
    """Computes norm(conv(x)), as one function where they are to be joined and may be.

    Args:
      norm: of `models.normalization`.
    """
    if not (joined and conv.is_widening_product(x.shape[-1]) and _may_join(norm, train)):
        return norm(conv(x), train=train)

    def compute(x: Any, scale: Any, offset: Any, epsilon: float) -> Any:
        return normalized_product(x, conv.matrix(), scale, offset, epsilon, conv.precision)

    return norm(x, train=train, joined=Joined(conv.features, compute))


def normalized_and_pooled(
    norm: nn.Module, x: Float[Array, "*n h w c"], *, train: bool, joined: bool
) -> Float[Array, "*n _ _ c"]:
    """Computes max_pool(relu(norm(x))), 3x3 with stride 2, as `convolved_and_normalized`."""
    if joined and _may_join(norm, train):
        return norm(x, train=train, joined=Joined(x.shape[-1], normalized_pool))
    return pool(nn.relu(norm(x, train=train)))


def _may_join(norm: nn.Module, train: bool) -> bool:
    """Tells whether a layer normalises by the moments of the batch that it is given, alone."""
    # What initialises a network makes the parameters of each layer by the layer itself.
    return (
        train and isinstance(norm, BatchNorm) and not norm.axis_names and not norm.is_initializing()
    )
