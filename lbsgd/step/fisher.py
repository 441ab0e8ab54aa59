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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PyTree

from lbsgd.models.curvature import DIAGONAL, KRONECKER, CurvedLayer, Rule, rule_of
from lbsgd.step.worker import Batch, Worker, WorkerResult
from lbsgd.workers.placement import Placement

# By the name of a layer, then "A" and "G", or "F" of a norm.
Statistics = Mapping[str, Mapping[str, Any]]
# In a batch, beside its rows: whether a lane holds a worker, `[L]`.
_IS_REAL = "is_real"


class Fisher(NamedTuple):
    """Says which statistics of curvature an update takes.

    Attributes:
      network: (params, batch_stats, images, key) -> outputs, what norms leave; the worker's.
      layers: those with a rule, by name.
      ruled: like the parameters, True where a layer's rule is for them.
      examples: m, of a worker, the first, that statistics are of.
      precision: of their products.
    """

    network: Callable[..., Any]
    layers: Mapping[str, CurvedLayer]
    ruled: PyTree[bool]
    examples: int
    precision: Any


class Probed(NamedTuple):
    """Holds parameters, and the zeros whose gradients are statistics; or the gradients of both."""

    params: Any
    sinks: Statistics


def probed(params: Any, trained: Any, fisher: Fisher) -> tuple[Probed, Probed]:
    """Adds the sinks to parameters, and to what tells which of these are trained."""
    dtype = jax.tree.leaves(params)[0].dtype
    sinks = no_statistics(fisher.layers, dtype)
    if trained is None:
        trained = jax.tree.map(lambda _: True, params)
    return Probed(params, sinks), Probed(trained, jax.tree.map(lambda _: True, sinks))


def with_lanes(batch: Batch, step: Int[Array, ""], placement: Placement) -> Batch:
    """Adds to the rows of an accumulation step which of its lanes hold a worker."""
    return {**batch, _IS_REAL: placement.holds_worker(step)}


def probing(worker: Worker, fisher: Fisher) -> Worker:
    """Wraps a worker to take `Probed` parameters, and a batch of `with_lanes`."""

    def with_taps(
        params: Probed, batch_stats: Any, numbers: Any, batch: Batch, index: Int[Array, ""]
    ) -> WorkerResult:
        rows = {key: x for key, x in batch.items() if key != _IS_REAL}
        network = functools.partial(_tapped, fisher, params.sinks, batch[_IS_REAL])
        return worker(params.params, batch_stats, numbers, rows, index, network=network)

    return with_taps


def averaged(sums: Statistics, gradient: Any, fisher: Fisher, placement: Placement) -> Any:
    """Makes averages over examples (of G over positions too) of the sums that sinks gathered.

    Args:
      sums: as they come with the gradient, averaged over devices as it is.
      gradient: of the mean loss over all kn examples.

    Returns:
      statistics by layer; and under "diagonal", like the parameters, kn g^2 where no rule is.
    """
    # The gradient that a tap sees is (D / kn) times that of an example's own loss.
    kn, devices = placement.batch_size, placement.devices
    examples = placement.workers * fisher.examples
    of_inputs, of_gradients = devices / examples, kn**2 / (devices * examples)

    def mean(layer: CurvedLayer, key: str, total: jax.Array) -> jax.Array:
        if key == "A":
            return of_inputs * total
        return of_gradients / (layer.positions if key == "G" else 1) * total

    found: dict[str, Any] = {
        name: {key: mean(layer, key, total) for key, total in sums[name].items()}
        for name, layer in fisher.layers.items()
    }
    found[DIAGONAL] = jax.tree.map(
        lambda ruled, g: None if ruled or g is None else kn * jnp.square(g),
        fisher.ruled,
        gradient,
    )
    return found


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


def _tapped(fisher: Fisher, sinks: Statistics, real: Bool[Array, ""], *args: Any) -> Any:
    """Applies the network, so that its backward pass leaves statistics."""

    def intercept(call: Callable[..., Any], given: Any, keywords: Any, context: Any) -> Any:
        y = call(*given, **keywords)
        name = "/".join(context.module.path)
        if context.method_name != "__call__" or name not in fisher.layers:
            return y
        rule = rule_of(context.module, given[0], y, keywords)
        return _tap(rule, y, real, sinks[name], fisher) if rule else y

    with nn.intercept_methods(intercept):
        return fisher.network(*args)


def _tap(rule: Rule, y: Any, real: Bool[Array, ""], sinks: Any, fisher: Fisher) -> Any:
    """Gives y, and on the way back the statistics as the gradient of the sinks."""
    examples = fisher.examples
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
            sums = summed(
                rows, gradients, real, functools.partial(_moment, dtype, fisher.precision)
            )
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
        return jnp.einsum(
            "ni,nj->ij", rows, rows, precision=precision, preferred_element_type=dtype
        )

    @moment.def_vmap
    def of_lanes(size: int, mapped: list[bool], rows: Any) -> tuple[Any, bool]:
        assert mapped[0], "the rows of a lane are its own"
        return moment(rows.reshape(-1, rows.shape[-1])), False

    return moment(rows)
