"""Residual networks: ResNet v1.5 for ImageNet, the CIFAR ResNets, and what lies between.

He et al. 2015 (arXiv 1512.03385), with the stride of a bottleneck in its 3x3 convolution and the
initialisation of Goyal et al. 2017, section 5.1: He normal by fan-out, the last batch norm's scale
of each residual block zero, classifier N(0, 0.01).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbsgd.models.normalization import BatchNorm
from lbsgd.models.roles import Role, with_role


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What tells one residual network from another.

    Attributes:
      blocks: residual blocks in each stage; each stage after the first halves the resolution.
      width: channels of the first stage; each stage doubles them.
      bottleneck: blocks of 1x1, 3x3, 1x1 (4x wide at the end) rather than of two 3x3.
      stem: "imagenet" is 7x7 stride 2 and max pooling 3x3 stride 2; "small" is 3x3.
      shortcut: where the shape changes, a "projection" (1x1 convolution and batch norm) or
        "pad" (every second pixel and zero channels: option A of He et al., no parameters).
    """

    blocks: tuple[int, ...]
    width: int = 64
    bottleneck: bool = False
    stem: Literal["imagenet", "small"] = "imagenet"
    shortcut: Literal["projection", "pad"] = "projection"


def _cifar(depth: int) -> Architecture:
    """Depth 6n + 2 for 32x32 images (He et al., section 4.2)."""
    return Architecture(((depth - 2) // 6,) * 3, 16, False, "small", "pad")


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture((2, 2, 2, 2)),
    "resnet34": Architecture((3, 4, 6, 3)),
    "resnet50": Architecture((3, 4, 6, 3), bottleneck=True),
    "resnet101": Architecture((3, 4, 23, 3), bottleneck=True),
    "resnet152": Architecture((3, 8, 36, 3), bottleneck=True),
    **{f"resnet{depth}": _cifar(depth) for depth in (8, 20, 32, 44, 56, 110)},
}


class Conv(nn.Module):
    """A convolution without bias, padded by kernel // 2 on every side (as PyTorch pads)."""

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., h, w, c]` to `[..., h / stride, w / stride, features]`."""
        he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        margin = self.kernel // 2
        return nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            padding=((margin, margin), (margin, margin)),
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=with_role(Role.KERNEL, he_normal),
            name="conv",
        )(x)


class Block(nn.Module):
    """A residual block: relu(shortcut(x) + branch(x)), or relu(branch(x)) without skips."""

    features: int
    stride: int
    bottleneck: bool
    shortcut: str
    skip_connections: bool
    zero_init_residual: bool
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        out = self.features * (4 if self.bottleneck else 1)
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        if self.bottleneck:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (out, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (out, 3, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(layers, 1):
            last = i == len(layers)
            scale_init = last_scale if last else nn.initializers.ones
            y = self.conv(features, kernel, stride, name=f"conv{i}")(y)
            y = self.norm(scale_init=scale_init, name=f"norm{i}")(y, train=train)
            if not last:
                y = nn.relu(y)
        if self.skip_connections:
            y = y + self._shortcut(x, out, train)
        return nn.relu(y)

    def _shortcut(self, x: jax.Array, out: int, train: bool) -> jax.Array:
        if x.shape[-1] == out and self.stride == 1:
            return x
        if self.shortcut == "pad":
            x = x[..., :: self.stride, :: self.stride, :]
            grow = [(0, 0)] * (x.ndim - 1) + [(0, out - x.shape[-1])]
            return jnp.pad(x, grow)
        x = self.conv(out, 1, self.stride, name="shortcut_conv")(x)
        return self.norm(name="shortcut_norm")(x, train=train)


class ResNet(nn.Module):
    """A residual network for images `[n, h, w, c]`, giving logits `[n, num_classes]`.

    Attributes:
      architecture: see `Architecture`.
      num_classes: of the classifier.
      width: multiplier of all channel counts.
      skip_connections: without them the blocks are plain (for studies of what skips do).
      zero_init_residual: the last batch-norm scale of each block starts at 0, so that the block
        starts as the identity (Goyal et al., section 5.1).
      dtype: of activations; logits are in `param_dtype`.
      param_dtype: of parameters, statistics and logits.
      norm_axis_names: mapped axes that share batch-norm statistics.
      norm_epsilon: of batch norm.
    """

    architecture: Architecture
    num_classes: int
    width: float = 1.0
    skip_connections: bool = True
    zero_init_residual: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    norm_axis_names: tuple[str, ...] = ()
    norm_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits of normalised images."""
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv(*args: int, name: str) -> nn.Module:
            return Conv(*args, **types, name=name)

        def norm(**kwargs: Any) -> nn.Module:
            axes = self.norm_axis_names
            return BatchNorm(self.norm_epsilon, axis_names=axes, **types, **kwargs)

        first = max(1, round(self.architecture.width * self.width))
        x = self._stem(images.astype(self.dtype), first, conv, norm, train)
        for stage, blocks in enumerate(self.architecture.blocks):
            for i in range(blocks):
                x = Block(
                    features=first * 2**stage,
                    stride=2 if stage and not i else 1,
                    bottleneck=self.architecture.bottleneck,
                    shortcut=self.architecture.shortcut,
                    skip_connections=self.skip_connections,
                    zero_init_residual=self.zero_init_residual,
                    conv=conv,
                    norm=norm,
                    name=f"stage{stage + 1}_block{i + 1}",
                )(x, train=train)
        x = jnp.mean(x.astype(self.param_dtype), axis=(-3, -2))
        return nn.Dense(
            self.num_classes,
            dtype=self.param_dtype,
            param_dtype=self.param_dtype,
            kernel_init=with_role(Role.KERNEL, nn.initializers.normal(0.01)),
            bias_init=with_role(Role.BIAS, nn.initializers.zeros),
            name="classifier",
        )(x)

    def _stem(
        self,
        x: jax.Array,
        features: int,
        conv: Callable[..., nn.Module],
        norm: Callable[..., nn.Module],
        train: bool,
    ) -> jax.Array:
        imagenet = self.architecture.stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        x = conv(features, kernel, stride, name="stem_conv")(x)
        x = nn.relu(norm(name="stem_norm")(x, train=train))
        if imagenet:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return x
