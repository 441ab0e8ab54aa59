"""Builds residual networks: ResNet v1.5 and -D for ImageNet, CIFAR's, and what lies between.

He et al. 2015 (arXiv 1512.03385), with the stride of a bottleneck in its 3x3 convolution and the
initialisation of Goyal et al. 2017, section 5.1: He normal by fan-out, the last batch norm's scale
of each residual block zero, classifier N(0, 0.01). ResNet-D is of He et al. 2018 (Bag of Tricks,
arXiv 1812.01187, section 4.2).
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lbsgd.models.convolutions import (
    Conv,
    average_pool,
    convolved_and_normalized,
    normalized_and_pooled,
    relu,
)
from lbsgd.models.normalization import BatchNorm, GroupNorm, NoNorm, around_one
from lbsgd.models.roles import Role, with_role
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Tells one residual network from another.

    Attributes:
      blocks: residual blocks in each stage; each stage after the first halves the resolution.
      width: channels of the first stage; each stage doubles them.
      bottleneck: blocks of 1x1, 3x3, 1x1 (4x wide at the end) rather than of two 3x3.
      stem: "imagenet" is 7x7 stride 2 and max pooling 3x3 stride 2; "deep" has three 3x3 in place
        of the 7x7, the first with the stride, the first two half as wide; "small" is 3x3.
      shortcut: where the shape changes, a "projection" (1x1 convolution and batch norm), a
        "pooled_projection" (the stride in average pooling 2x2 before it) or "pad" (every second
        pixel and zero channels: option A of He et al., no parameters).
    """

    blocks: tuple[int, ...]
    width: int = 64
    bottleneck: bool = False
    stem: Literal["imagenet", "deep", "small"] = "imagenet"
    shortcut: Literal["projection", "pooled_projection", "pad"] = "projection"


_IMAGENET = {
    "resnet18": Architecture((2, 2, 2, 2)),
    "resnet34": Architecture((3, 4, 6, 3)),
    "resnet50": Architecture((3, 4, 6, 3), bottleneck=True),
    "resnet101": Architecture((3, 4, 23, 3), bottleneck=True),
    "resnet152": Architecture((3, 8, 36, 3), bottleneck=True),
}
# Those with a "d" are ResNet-D.
IMAGENET = _IMAGENET | {
    f"{name}d": dataclasses.replace(a, stem="deep", shortcut="pooled_projection")
    for name, a in _IMAGENET.items()
}
# The CIFAR network of two blocks a stage has depth 14, of three 20: a block has two layers, and
# stem and classifier are two more.
_BLOCK_OF_EACH_STAGE = 6
_LEAST_DEPTH, _MOST_DEPTH = 8, 9998


def named_architecture(name: str) -> Architecture:
    """Finds the architecture of a name: of `IMAGENET`, or `cifar_resnetD` of depth D = 6n + 2.

    The latter is for images of 32x32 (He et al., section 4.2).

    Raises:
      ConfigError: there is none.
    """
    if name in IMAGENET:
        return IMAGENET[name]
    match = re.fullmatch(r"(cifar_)?resnet([1-9][0-9]{0,8})", name)
    if match is None:
        raise ConfigError(
            f"unknown model.name {short_repr(name)}; known: {', '.join(IMAGENET)}, and "
            f'cifar_resnetD with D = 6n + 2, as cifar_resnet20, or "package.module:name"'
            f"{_meant(name)}"
        )
    near = _nearest_depths(int(match[2]))
    if match[1] is None or int(match[2]) not in near:
        reason = f"is none of {', '.join(IMAGENET)}"
        if match[1]:
            reason = f"has no depth of 6n + 2 from {_LEAST_DEPTH} to {_MOST_DEPTH:,}"
        take = " or ".join(f"cifar_resnet{depth}" for depth in near)
        raise ConfigError(f"model.name {name!r} {reason}; for CIFAR there is {take}")
    blocks = (int(match[2]) - 2) // _BLOCK_OF_EACH_STAGE
    return Architecture((blocks,) * 3, 16, False, "small", "pad")


def _meant(name: str) -> str:
    """Asks whether a name with dots, as Python imports it, is one with a colon."""
    module, _, attribute = name.rpartition(".")
    if module and all(part.isidentifier() for part in name.split(".")):
        return f"; did you mean {short_repr(f'{module}:{attribute}')}?"
    return ""


def _nearest_depths(depth: int) -> list[int]:
    """Finds the depth itself where it is one of CIFAR's, or else those below and above it."""
    below = depth - (depth - 2) % _BLOCK_OF_EACH_STAGE
    around = (below, below + _BLOCK_OF_EACH_STAGE * (below != depth))
    return sorted({min(max(d, _LEAST_DEPTH), _MOST_DEPTH) for d in around})


class Block(nn.Module):
    """Computes a residual block: relu(shortcut(x) + branch(x)), or relu(branch(x)) without skips.

    With `zero_init_residual` the branch is 0 at the start, by its last scale, or by its last
    kernel where there are no scales (`normalized`).
    """

    features: int
    stride: int
    bottleneck: bool
    shortcut: str
    skip_connections: bool
    zero_init_residual: bool
    conv: Callable[..., Conv]
    norm: Callable[..., nn.Module]
    normalized: bool = True
    joined: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "*n h w c"], *, train: bool
    ) -> Float[Array, "*n _ _ features"]:
        """Computes `[..., h / stride, w / stride, features]`; of a bottleneck 4 x features."""
        out = self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:
            layers = [(self.features, 1, 1), (self.features, 3, self.stride), (out, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (out, 3, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(layers, 1):
            last = i == len(layers)
            zero = last and self.zero_init_residual
            start = {"scale_init": nn.initializers.zeros} if zero else {}
            zero_kernel = zero and not self.normalized
            conv = self.conv(features, kernel, stride, zero_kernel, name=f"conv{i}")
            norm = self.norm(**start, name=f"norm{i}")
            y = convolved_and_normalized(conv, norm, y, train=train, joined=self.joined)
            if not last:
                y = nn.relu(y)
        if self.skip_connections:
            y = y + self._shortcut(x, out, train)
        # Where bytes count; `nn.relu` can be differentiated forward too.
        return relu(y) if self.joined else nn.relu(y)

    def _shortcut(
        self, x: Float[Array, "*n h w c"], out: int, train: bool
    ) -> Float[Array, "*n _ _ out"]:
        """Computes what is added to the branch: x, or x in the branch's shape."""
        if x.shape[-1] == out and self.stride == 1:
            return x
        if self.shortcut == "pad":
            x = x[..., :: self.stride, :: self.stride, :]
            grow = [(0, 0)] * (x.ndim - 1) + [(0, out - x.shape[-1])]
            return jnp.pad(x, grow)
        stride = self.stride
        if self.shortcut == "pooled_projection" and stride > 1:
            x, stride = average_pool(x), 1
        conv = self.conv(out, 1, stride, name="shortcut_conv")
        norm = self.norm(name="shortcut_norm")
        return convolved_and_normalized(conv, norm, x, train=train, joined=self.joined)


def _apply(
    block: Block, x: Float[Array, "*n h w c"], *, train: bool
) -> Float[Array, "*n _ _ features"]:
    """Applies a block: `nn.remat` takes a function of a module and arrays."""
    return block(x, train=train)


class ResNet(nn.Module):
    """Computes logits `[n, num_classes]` of images `[n, h, w, c]` by a residual network.

    Attributes:
      architecture: see `Architecture`.
      num_classes: of the classifier.
      width: multiplier of all channel counts.
      skip_connections: without them the blocks are plain (for studies of what skips do).
      zero_init_residual: the last scale of each block starts at 0, so that the block starts as the
        identity (Goyal et al., section 5.1); without normalisation, its last kernel.
      normalization: "batch", "group", or "none", whose convolutions have biases instead.
      dtype: of activations; logits are in `param_dtype`.
      param_dtype: of parameters, statistics and logits.
      precision: of the products of float32, as `jax.lax.Precision` names it.
      norm_axis_names: mapped axes that share batch-norm statistics.
      norm_epsilon: of batch and group norm.
      norm_scale_std: of the normal distribution, of mean 1, that their scales start from; 0 for
        all 1.
      joined: whether layers are computed as one in training where they can be; it changes no number
        beyond rounding.
      remat: of each block only the input is kept for the backward pass, where the block is computed
        again; it changes no number.
    """

    architecture: Architecture
    num_classes: int
    width: float = 1.0
    skip_connections: bool = True
    zero_init_residual: bool = True
    normalization: Literal["batch", "group", "none"] = "batch"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    precision: str = "highest"
    norm_axis_names: tuple[str, ...] = ()
    norm_epsilon: float = 1e-5
    norm_scale_std: float = 0.0
    joined: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "*n h w c"], *, train: bool
    ) -> Float[Array, "*n classes"]:
        """Computes logits of normalised images."""
        first = max(1, round(self.architecture.width * self.width))
        conv, norm = self._layers()
        x = self._stem(images.astype(self.dtype), first, conv, norm, train)
        apply = functools.partial(_apply, train=train)
        if self.remat:
            apply = nn.remat(apply)
        for stage, blocks in enumerate(self.architecture.blocks):
            for i in range(blocks):
                block = Block(
                    features=first * 2**stage,
                    stride=2 if stage and not i else 1,
                    bottleneck=self.architecture.bottleneck,
                    shortcut=self.architecture.shortcut,
                    skip_connections=self.skip_connections,
                    zero_init_residual=self.zero_init_residual,
                    conv=conv,
                    norm=norm,
                    normalized=self.normalization != "none",
                    joined=self.joined,
                    name=f"stage{stage + 1}_block{i + 1}",
                )
                x = apply(block, x)
        x = jnp.mean(x.astype(self.param_dtype), axis=(-3, -2))
        return nn.Dense(
            self.num_classes,
            dtype=self.param_dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=with_role(Role.KERNEL, nn.initializers.normal(0.01)),
            bias_init=with_role(Role.BIAS, nn.initializers.zeros),
            name="classifier",
        )(x)

    def _layers(self) -> tuple[Callable[..., Conv], Callable[..., nn.Module]]:
        """Binds what makes the convolutions and the normalisations, here and in the blocks."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kind, precision = self.normalization, self.precision
        epsilon, axes = self.norm_epsilon, self.norm_axis_names
        start = around_one(self.norm_scale_std)

        def conv(*args: Any, name: str) -> Conv:
            of_network = {**types, "use_bias": kind == "none", "precision": precision}
            return Conv(*args, **of_network, name=name)

        def norm(*, name: str, **options: Any) -> nn.Module:
            if kind == "none":
                return NoNorm(name=name)
            options = {"scale_init": start, **options}
            if kind == "group":
                return GroupNorm(epsilon, **types, **options, name=name)
            return BatchNorm(epsilon, axis_names=axes, **types, **options, name=name)

        return conv, norm

    def _stem(
        self,
        x: Float[Array, "*n h w c"],
        features: int,
        conv: Callable[..., Conv],
        norm: Callable[..., nn.Module],
        train: bool,
    ) -> Float[Array, "*n _ _ features"]:
        """Computes what comes before the blocks."""
        half = max(1, features // 2)
        # Features, kernel and stride of each convolution, by the end of its name.
        layers = {
            "imagenet": {"": (features, 7, 2)},
            "deep": {"1": (half, 3, 2), "2": (half, 3, 1), "3": (features, 3, 1)},
            "small": {"": (features, 3, 1)},
        }[self.architecture.stem]
        pools = self.architecture.stem != "small"
        last = list(layers)[-1]
        for i, layer in layers.items():
            x = conv(*layer, name=f"stem_conv{i}")(x)
            normalize = norm(name=f"stem_norm{i}")
            if pools and i == last:
                return normalized_and_pooled(normalize, x, train=train, joined=self.joined)
            x = nn.relu(normalize(x, train=train))
        return x
