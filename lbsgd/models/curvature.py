"""Tells which layers have a rule for the curvature of their loss, and what that is made of.

A convolution or dense layer has two Kronecker factors (Martens and Grosse 2015; Grosse and Martens
2016): the second moment A of its inputs, patches for a convolution, and G of the gradients of its
outputs. A batch norm has the second moments of the gradients of each channel's scale and offset
(Osawa et al. 2020, unit-wise). Layers are found as their roles are: by the class of the module that
Flax calls, so no network has to be changed. One without a rule is left to its optimizer.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lbsgd.models.networks import Network
from lbsgd.models.normalization import BatchNorm, moments

KRONECKER, UNIT_WISE, FULL = "kronecker", "unit_wise", "full"
# The statistics of parameters that no layer's rule is for.
DIAGONAL = "diagonal"


class CurvedLayer(NamedTuple):
    """Describes a layer that has a rule.

    Attributes:
      path: of its module.
      kind: `KRONECKER`; of a norm `UNIT_WISE`, or `FULL`, one matrix of all its parameters.
      parameters: their names; the kernel first, or the scale.
      inputs: d_A, rows of the kernel as a matrix, and one for the bias; of a norm 2 c.
      outputs: d_G, output features; channels of a norm.
      positions: h w, of the outputs of an example.
      kernel_shape: of the kernel; () of a norm.
    """

    path: tuple[str, ...]
    kind: str
    parameters: tuple[str, ...]
    inputs: int
    outputs: int
    positions: int
    kernel_shape: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The path as one word: "stage1_block1/conv1/conv"."""
        return "/".join(self.path)

    @property
    def factors(self) -> dict[str, int]:
        """Dimensions of the symmetric matrices that multiply its gradient as a matrix, by key."""
        if self.kind == KRONECKER:
            return {"A": self.inputs, "G": self.outputs}
        return {"A": self.inputs} if self.kind == FULL else {}


class Rule(NamedTuple):
    """Says how a layer's statistics follow from its input.

    Attributes:
      layer: what they are of.
      given: arrays that they are made of: the layer's input x, and what else it takes.
      inputs: (x of some examples, the rest of `given`) -> `[n, positions, d]`: with d_A columns of
        a Kronecker layer, patches and 1 for the bias; of a norm with one for each channel, x in
        units of its deviation.
    """

    layer: CurvedLayer
    given: tuple[jax.Array, ...]
    inputs: Callable[..., jax.Array]


def rule_of(
    module: nn.Module, x: jax.Array, y: jax.Array, kwargs: Mapping[str, Any]
) -> Rule | None:
    """Finds the rule of a module that maps x to y, within its call; None where there is none."""
    # Their own classes alone: of one that inherits it is not known what it computes.
    if type(module) is nn.Conv:
        return _of_convolution(module, x, y)
    if type(module) is nn.Dense and x.ndim >= 2:
        return _of_dense(module, x, y)
    if type(module) is BatchNorm and x.ndim >= 2:
        return _of_norm(module, x, kwargs)
    return None


def _of_convolution(module: nn.Conv, x: jax.Array, y: jax.Array) -> Rule | None:
    space = x.ndim - 2
    kernel = _each(module.kernel_size, space)
    plain = module.feature_group_count == 1 and module.mask is None
    if not plain or len(kernel) != space or set(_each(module.input_dilation, space)) != {1}:
        return None
    strides = _each(module.strides, space)
    dilation = _each(module.kernel_dilation, space)
    padding = _padding(module.padding, x.shape[1:-1], kernel, strides, dilation)
    if padding is None or (module.conv_general_dilated or module.conv_general_dilated_cls):
        return None
    bias, positions = bool(module.use_bias), math.prod(y.shape[1:-1])

    def rows(x: jax.Array) -> jax.Array:
        found = patches(x, kernel, strides, dilation, padding)
        return _with_ones(found.reshape(x.shape[0], positions, -1), bias)

    shape = (*kernel, x.shape[-1], y.shape[-1])
    return Rule(_kronecker(module, shape, bias, positions), (x,), rows)


def _of_dense(module: nn.Dense, x: jax.Array, y: jax.Array) -> Rule:
    positions = math.prod(x.shape[1:-1])

    def rows(x: jax.Array) -> jax.Array:
        return _with_ones(x.reshape(x.shape[0], positions, -1), module.use_bias)

    shape = (x.shape[-1], y.shape[-1])
    return Rule(_kronecker(module, shape, module.use_bias, positions), (x,), rows)


def _kronecker(
    module: nn.Module, shape: tuple[int, ...], bias: bool, positions: int
) -> CurvedLayer:
    inputs = math.prod(shape[:-1]) + bias
    names = ("kernel", "bias")[: 1 + bias]
    return CurvedLayer(module.path, KRONECKER, names, inputs, shape[-1], positions, shape)


def _of_norm(module: BatchNorm, x: jax.Array, kwargs: Mapping[str, Any]) -> Rule:
    if kwargs["train"]:
        # As the module has computed them: the compiler computes them once.
        found = moments(x, module.axis_names, module.param_dtype)
        mean, variance = found.mean, found.variance
    else:
        mean, variance = (module.get_variable("batch_stats", name) for name in ("mean", "var"))
    factor = lax.rsqrt(variance + module.epsilon)

    def normalized(x: jax.Array, mean: jax.Array, factor: jax.Array) -> jax.Array:
        # Not from the output, whose scale may be 0.
        y = x.astype(mean.dtype).reshape(x.shape[0], -1, x.shape[-1])
        return (y - jnp.expand_dims(mean, (0, 1))) * jnp.expand_dims(factor, (0, 1))

    positions = math.prod(x.shape[1:-1])
    layer = CurvedLayer(
        module.path, UNIT_WISE, ("scale", "offset"), 2 * x.shape[-1], x.shape[-1], positions
    )
    return Rule(layer, (x, mean, factor), normalized)


def _each(value: int | Sequence[int] | None, space: int) -> tuple[int, ...]:
    if isinstance(value, Sequence):
        return tuple(value)
    return (value or 1,) * space


def _padding(
    padding: Any, shape: Sequence[int], kernel: Any, strides: Any, dilation: Any
) -> tuple[tuple[int, int], ...] | None:
    """Resolves a convolution's padding to pixels before and after; None where it is not zeros."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            return None
        wide = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
        return tuple(lax.padtype_to_pads(shape, wide, strides, padding))
    if isinstance(padding, int):
        return ((padding, padding),) * len(kernel)
    pairs = ((p, p) if isinstance(p, int) else tuple(p) for p in padding)
    return tuple(pairs)


def _with_ones(rows: jax.Array, bias: bool) -> jax.Array:
    """Appends the input of the bias, 1, to rows `[n, positions, d]`."""
    return jnp.pad(rows, ((0, 0), (0, 0), (0, 1)), constant_values=1) if bias else rows


def patches(
    x: Float[Array, "n *space c"],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "n *positions d"]:
    """Takes the patches that a convolution sees, in the order of its kernel.

    Returns:
      `[n, *positions, d]`, d = kernel size times channels: times `kernel.reshape(d, outputs)` it is
      the convolution.
    """
    # By strided slices: `lax.conv_general_dilated_patches` has another order, and takes twice as
    # long on a CPU.
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    wide = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    counts = [(n - w) // s + 1 for n, w, s in zip(x.shape[1:-1], wide, strides)]
    parts = []
    for offset in itertools.product(*map(range, kernel)):
        starts = [o * d for o, d in zip(offset, dilation)]
        which = [slice(b, b + s * (n - 1) + 1, s) for b, s, n in zip(starts, strides, counts)]
        parts.append(x[(slice(None), *which)])
    return jnp.concatenate(parts, axis=-1)


def curved_layers(network: Network, params: Any, batch_stats: Any) -> dict[str, CurvedLayer]:
    """Finds the layers that have a rule, by tracing a network in training.

    A layer that is called more than once, or whose parameters are not as its class makes them (of
    `nn.scan` they are stacked), has none.

    Args:
      params, batch_stats: shapes and types.
    """
    found: dict[str, list[CurvedLayer | None]] = {}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and args:
            rule = rule_of(context.module, args[0], y, kwargs)
            found.setdefault("/".join(context.module.path), []).append(rule and rule.layer)
        return y

    with nn.intercept_methods(intercept):
        key = jax.eval_shape(lambda: jax.random.key(0))
        jax.eval_shape(lambda *args: network.train(*args), params, batch_stats, network.images, key)
    return {
        name: layers[0]
        for name, layers in found.items()
        if len(layers) == 1 and layers[0] and _is_there(layers[0], params)
    }


def _is_there(layer: CurvedLayer, params: Any) -> bool:
    """Tells whether the parameters at a layer's path are those of its rule."""
    for part in layer.path:
        params = params.get(part, {})
    first, *others = layer.parameters
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(others, (layer.outputs,))
    expected[first] = layer.kernel_shape or (layer.outputs,)
    return {name: jnp.shape(x) for name, x in params.items()} == expected


def ruled(layers: Mapping[str, CurvedLayer], params: Any) -> Any:
    """Tells which parameters a layer's rule is for: a tree of bools like them."""
    paths = {(*layer.path, name) for layer in layers.values() for name in layer.parameters}

    def is_ruled(path: tuple[Any, ...], _: Any) -> bool:
        return tuple(jax.tree_util.keystr((key,), simple=True) for key in path) in paths

    return jax.tree_util.tree_map_with_path(is_ruled, params)


def curvature_of(layers: Mapping[str, CurvedLayer]) -> dict[str, str]:
    """Says by which curvature each parameter is preconditioned, by its name: "A 27, G 16"."""
    return {
        f"{layer.name}/{name}": ", ".join(f"{key} {d}" for key, d in layer.factors.items())
        or f"{layer.outputs} x 2x2"
        for layer in layers.values()
        for name in layer.parameters
    }
