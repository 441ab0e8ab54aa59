"""Takes the statistics of curvature out of a worker's backward pass (SP-NGD, Osawa et al. 2020).

Each layer with a rule (`lbsgd.models.curvature`) is tapped: on the way back a tap leaves, as the
gradient of a matrix of zeros that has no effect, the sums over examples

    A: sum of a a^T over patches,    G: sum of g g^T over positions

of its inputs a and of the gradients g of its outputs; a norm's of the squares and the product of
each channel's two gradients. So they come with the gradient of the loss, in the same backward pass
(the empirical Fisher), are added over lanes, steps and devices as it is, and no example's or lane's
own are ever kept.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from lbsgd.models.curvature import KRONECKER, CurvedLayer, Rule, rule_of

# By the name of a layer, then "A" and "G", or "F" of a norm.
Statistics = Mapping[str, Mapping[str, Any]]


def no_statistics(layers: Mapping[str, CurvedLayer], dtype: Any) -> Statistics:
    """Makes statistics of zeros, whose gradients are those of a minibatch."""
    return {
        name: {key: jnp.zeros(shape, dtype) for key, shape in shapes_of(layer).items()}
        for name, layer in layers.items()
    }


def shapes_of(layer: CurvedLayer) -> dict[str, tuple[int, ...]]:
    """Gives the shapes of a layer's statistics by key."""
    if layer.kind == KRONECKER:
        return {"A": (layer.inputs,) * 2, "G": (layer.outputs,) * 2}
    return {"F": (layer.outputs, 3)}


def tapped(
    network: Callable[..., Any],
    layers: Mapping[str, CurvedLayer],
    examples: int,
    precision: Any,
) -> Callable[..., Any]:
    """Wraps a network in training so that its backward pass leaves statistics.

    Args:
      network: (params, batch_stats, images, key) -> anything.
      layers: those to tap, by name.
      examples: of a worker, the first, that statistics are of.
      precision: of their products.

    Returns:
      (sinks, real, params, ...) -> the same; the gradient of `sinks` are the statistics.
    """

    def call(sinks: Statistics, real: Bool[Array, ""], *args: Any) -> Any:
        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            y = call(*args, **kwargs)
            name = "/".join(context.module.path)
            if context.method_name != "__call__" or name not in layers:
                return y
            rule = rule_of(context.module, args[0], y, kwargs)
            return y if rule is None else _tap(rule, y, real, sinks[name], examples, precision)

        with nn.intercept_methods(intercept):
            return network(*args)

    return call


def _tap(
    rule: Rule, y: Any, real: Bool[Array, ""], sinks: Any, examples: int, precision: Any
) -> Any:
    """Gives y, and on the way back the statistics as the gradient of the sinks."""
    summed = _kronecker_sums if rule.layer.kind == KRONECKER else _unit_wise_sums

    @jax.custom_vjp
    def tap(y: Any, real: Any, given: Any, sinks: Any) -> Any:
        return y

    def forward(y: Any, real: Any, given: Any, sinks: Any) -> tuple[Any, Any]:
        return y, (real, given, sinks)

    def backward(left: Any, g: Any) -> tuple[Any, None, None, Any]:
        real, (x, *others), sinks = left
        rows = rule.inputs(x[:examples], *others)
        gradients = g[:examples].reshape(examples, rule.layer.positions, -1)
        dtype = jax.tree.leaves(sinks)[0].dtype
        with jax.named_scope("fisher"):
            sums = summed(rows, gradients, real, functools.partial(_moment, dtype, precision))
        return g, None, None, {key: x.astype(dtype) for key, x in sums.items()}

    tap.defvjp(forward, backward)
    # The inputs of a layer are looked at, and get no gradient by it.
    return tap(y, real, jax.lax.stop_gradient(rule.given), sinks)


def _kronecker_sums(
    a: Float[Array, "n positions d_a"],
    g: Float[Array, "n positions d_g"],
    real: Bool[Array, ""],
    moment: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    # The gradient of an idle lane is 0, but its inputs are those of a worker that counts already.
    counted = jnp.where(real, a, 0)
    return {key: moment(x.reshape(-1, x.shape[-1])) for key, x in (("A", counted), ("G", g))}


def _unit_wise_sums(
    x: Float[Array, "n positions c"],
    g: Float[Array, "n positions c"],
    real: Bool[Array, ""],
    moment: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
    g = g.astype(x.dtype)
    scale, offset = jnp.sum(g * x, axis=1), jnp.sum(g, axis=1)
    products = (scale * scale, scale * offset, offset * offset)
    return {"F": jnp.stack([jnp.sum(p, axis=0) for p in products], axis=-1)}


def _moment(dtype: Any, precision: Any, rows: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """Sums x x^T over rows x, and over all lanes that these are mapped over."""

    # A lane's own sum would be a matrix for each lane, of which there may be a thousand. Under
    # `vmap` this is one product of the rows of all lanes, and says that it is the same for each:
    # the gradient of what is not mapped then is that sum, and not as many times it.
    @custom_vmap
    def moment(rows: Float[Array, "n d"]) -> Float[Array, "d d"]:
        return jnp.einsum("ni,nj->ij", rows, rows, precision=precision, preferred_element_type=dtype)

    @moment.def_vmap
    def of_lanes(size: int, mapped: list[bool], rows: Any) -> tuple[Any, bool]:
        assert mapped[0], "the rows of a lane are its own"
        return moment(rows.reshape(-1, rows.shape[-1])), False

    return moment(rows)
