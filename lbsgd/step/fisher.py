"""Takes the statistics of curvature out of a worker's backward pass (SP-NGD, Osawa et al. 2020).

Each layer with a rule (`lbsgd.models.curvature`) is tapped: on the way back a tap leaves, as the
gradient of a matrix of zeros that has no effect, the sums over examples

    A: sum of a a^T over patches,    G: sum of g g^T over positions

of its inputs a and of the gradients g of its outputs; a norm's of the squares and the product of
each channel's two gradients. So they come with the gradient of the loss, in the same backward pass
(the empirical Fisher), are added over lanes, steps and devices as it is, and no example's or lane's
own are ever kept. Of labels sampled from the model (`1mc`) they come in a backward pass of their
own, after the same forward pass.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from lbsgd.models.curvature import (
    DIAGONAL,
    FULL,
    KRONECKER,
    UNIT_WISE,
    CurvedLayer,
    Rule,
    rule_of,
    ruled,
)
from lbsgd.models.selection import trained_part, with_frozen
from lbsgd.step.worker import Batch, Worker, WorkerResult, sampling_key
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
      examples: m, of a worker, the first, that statistics are of.
      precision: of their products.
      sampled_loss: (outputs, key) -> the loss of labels that are sampled from them, whose gradients
        the statistics are of (`lbsgd.tasks.Task`); None for those of the training loss.
      exchanges: whether devices exchange something in the pass, as for synced batch norm.
    """

    network: Callable[..., Any]
    layers: Mapping[str, CurvedLayer]
    examples: int
    precision: Any
    sampled_loss: Callable[..., Any] | None = None
    exchanges: bool = False


class Probed(NamedTuple):
    """Holds parameters, and the zeros whose gradients are statistics; or the gradients of both.

    Attributes:
      sinks: by layer. Of sampled labels also, under `DIAGONAL`, the parameters that no rule is for,
        whose gradient is that of the loss of these labels.
      due: which statistics are taken, like the sinks; None for all of them.
    """

    params: Any
    sinks: Statistics
    due: Any = None


def probed(params: Any, trained: Any, fisher: Fisher, due: Any = None) -> tuple[Probed, Probed]:
    """Adds the sinks to parameters, and to what tells which of these are trained."""
    dtype = jax.tree.leaves(params)[0].dtype
    sinks: dict[str, Any] = {**no_statistics(fisher.layers, dtype)}
    if fisher.sampled_loss:
        unruled = jax.tree.map(lambda is_ruled: not is_ruled, ruled(fisher.layers, params))
        if trained is not None:
            unruled = jax.tree.map(lambda a, b: a and b, unruled, trained)
        sinks[DIAGONAL] = trained_part(params, unruled)
    if trained is None:
        trained = jax.tree.map(lambda _: True, params)
    are, are_not = (
        jax.tree.map(lambda _, x=x: x, tree) for tree, x in ((sinks, True), (due, False))
    )
    return Probed(params, sinks, due), Probed(trained, are, are_not)


def with_lanes(batch: Batch, step: Int[Array, ""], placement: Placement) -> Batch:
    """Adds to the rows of an accumulation step which of its lanes hold a worker."""
    return {**batch, _IS_REAL: placement.holds_worker(step)}


def probing(worker: Worker, fisher: Fisher) -> Worker:
    """Wraps a worker to take `Probed` parameters, and a batch of `with_lanes`."""

    def with_taps(
        params: Probed, batch_stats: Any, numbers: Any, batch: Batch, index: Int[Array, ""]
    ) -> WorkerResult:
        rows = {key: x for key, x in batch.items() if key != _IS_REAL}
        tapped = functools.partial(_tapped, fisher, params, batch[_IS_REAL])
        rest = (batch_stats, numbers, rows, index)
        if not fisher.sampled_loss:
            return worker(params.params, *rest, network=tapped)
        result = worker(params.params, *rest)
        # The compiler merges the two forward passes, which are the same: it makes one, and two ways
        # back, of which this one ends at the activations.
        probes = with_frozen(params.sinks[DIAGONAL], jax.lax.stop_gradient(params.params))
        loss = functools.partial(_sampled, fisher.sampled_loss, sampling_key(numbers, index))

        def sampled() -> Float[Array, ""]:
            found = worker(probes, *rest, network=tapped, loss=loss).loss
            # Its gradient alone is added, and 0 to the loss.
            return found - jax.lax.stop_gradient(found)

        more = sampled() if fisher.exchanges else _if_any_due(params, sampled, result.loss)
        return result._replace(loss=result.loss + more)

    return with_taps


def _if_any_due(
    params: Probed, sampled: Callable[[], Float[Array, ""]], loss: Float[Array, ""]
) -> Float[Array, ""]:
    """Makes the pass for sampled labels, where statistics may be of use."""
    flags = jax.tree.leaves(params.due)
    if not flags or jax.tree.leaves(params.sinks[DIAGONAL]):
        return sampled()
    # In a condition it is a forward pass of its own: dearer where any is due, and else nothing.
    return jax.lax.cond(jnp.any(jnp.stack(flags)), sampled, lambda: jnp.zeros_like(loss))


def _sampled(sampled_loss: Any, key: Any, outputs: Any, _: Batch, **__: Any) -> tuple[Any, Any]:
    """Computes the loss of sampled labels, as a worker's loss; of nothing else in a batch."""
    return sampled_loss(outputs, key), {}


def scales(fisher: Fisher, placement: Placement) -> dict[str, dict[str, float]]:
    """Computes what makes averages of the sums of all devices, by layer and key.

    Over examples: over positions the sums of G are averages already, of as many as images have.
    """
    # The gradient that a tap sees is (D / kn) times that of an example's own loss.
    of_gradients = (placement.batch_size / placement.devices) ** 2
    examples = placement.workers * fisher.examples

    def scale(layer: CurvedLayer, key: str) -> float:
        if layer.kind != KRONECKER:
            return of_gradients / examples
        return 1 / examples if key == "A" else of_gradients / examples

    return {
        name: {key: scale(layer, key) for key in _shapes(layer)}
        for name, layer in fisher.layers.items()
    }


def no_statistics(layers: Mapping[str, CurvedLayer], dtype: Any) -> Statistics:
    """Makes statistics of zeros, whose gradients are those of a minibatch."""
    return {
        name: {key: jnp.zeros(shape, dtype) for key, shape in _shapes(layer).items()}
        for name, layer in layers.items()
    }


def _shapes(layer: CurvedLayer) -> dict[str, tuple[int, ...]]:
    """Gives the shapes of a layer's statistics by key."""
    factors: dict[str, tuple[int, ...]] = {key: (d, d) for key, d in layer.factors.items()}
    return factors or {"F": (layer.outputs, 3)}


def _tapped(fisher: Fisher, given: Probed, real: Bool[Array, ""], *args: Any) -> Any:
    """Applies the network, so that its backward pass leaves statistics."""
    all_due = jax.tree.map(lambda _: None, given.sinks)
    due = all_due if given.due is None else given.due

    def intercept(call: Callable[..., Any], inputs: Any, keywords: Any, context: Any) -> Any:
        y = call(*inputs, **keywords)
        name = "/".join(context.module.path)
        if context.method_name != "__call__" or name not in fisher.layers:
            return y
        rule = rule_of(context.module, inputs[0], y, keywords)
        if not rule:
            return y
        # Of a norm the caller says which of its rules is meant. All else is of these images, which
        # may be smaller than those that the run was planned with.
        rule = rule._replace(layer=rule.layer._replace(kind=fisher.layers[name].kind))
        return _tap(rule, y, real, given.sinks[name], due[name], fisher)

    with nn.intercept_methods(intercept):
        return fisher.network(*args)


def _tap(rule: Rule, y: Any, real: Bool[Array, ""], sinks: Any, due: Any, fisher: Fisher) -> Any:
    """Gives y, and on the way back the statistics as the gradient of the sinks."""
    examples = fisher.examples
    summed = {KRONECKER: _kronecker_sums, UNIT_WISE: _unit_wise_sums, FULL: _full_sums}[
        rule.layer.kind
    ]

    @jax.custom_vjp
    def tap(y: Any, real: Any, given: Any, due: Any, sinks: Any) -> Any:
        return y

    def forward(y: Any, real: Any, given: Any, due: Any, sinks: Any) -> tuple[Any, Any]:
        return y, (real, given, due, sinks)

    def backward(left: Any, g: Any) -> tuple[Any, None, None, None, Any]:
        real, (x, *others), due, sinks = left
        gradients = g[:examples].reshape(examples, rule.layer.positions, -1)
        dtype = jax.tree.leaves(sinks)[0].dtype
        sums = summed(
            functools.partial(rule.inputs, x[:examples], *others),
            gradients,
            real,
            functools.partial(_moment, dtype, fisher.precision),
        )
        with jax.named_scope("fisher"):
            found = {key: _if_due(due[key], sums[key], sink) for key, sink in sinks.items()}
        return g, None, None, None, found

    tap.defvjp(forward, backward)
    # The inputs of a layer are looked at, and get no gradient by it.
    return tap(y, real, jax.lax.stop_gradient(rule.given), due, sinks)


def _if_due(due: Any, compute: Callable[[], jax.Array], zeros: jax.Array) -> jax.Array:
    """Computes a sum; where a flag says that it is not due, nothing is, and it is 0."""
    if due is None:
        return compute().astype(zeros.dtype)
    # The flag is the same for all lanes, and so stays a condition under `vmap`.
    return jax.lax.cond(due, lambda: compute().astype(zeros.dtype), lambda: jnp.zeros_like(zeros))


def _kronecker_sums(
    inputs: Callable[[], Float[Array, "n positions d_a"]],
    g: Float[Array, "n positions d_g"],
    real: Bool[Array, ""],
    moment: Callable[[jax.Array], jax.Array],
) -> dict[str, Callable[[], jax.Array]]:
    def of_inputs() -> jax.Array:
        # The gradient of an idle lane is 0, but its inputs are those of a worker that counts.
        a = jnp.where(real, inputs(), 0)
        return moment(a.reshape(-1, a.shape[-1]))

    return {"A": of_inputs, "G": lambda: moment(g.reshape(-1, g.shape[-1])) / g.shape[1]}


def _of_channels(
    x: Float[Array, "n positions c"], g: Float[Array, "n positions c"]
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Computes each example's gradients of a norm's scale and offset."""
    of_x = g.astype(x.dtype)
    return jnp.sum(of_x * x, axis=1), jnp.sum(of_x, axis=1)


def _unit_wise_sums(
    inputs: Callable[[], Float[Array, "n positions c"]],
    g: Float[Array, "n positions c"],
    real: Bool[Array, ""],
    moment: Callable[[jax.Array], jax.Array],
) -> dict[str, Callable[[], jax.Array]]:
    def products() -> jax.Array:
        scale, offset = _of_channels(inputs(), g)
        each = (scale * scale, scale * offset, offset * offset)
        return jnp.stack([jnp.sum(p, axis=0) for p in each], axis=-1)

    return {"F": products}


def _full_sums(
    inputs: Callable[[], Float[Array, "n positions c"]],
    g: Float[Array, "n positions c"],
    real: Bool[Array, ""],
    moment: Callable[[jax.Array], jax.Array],
) -> dict[str, Callable[[], jax.Array]]:
    return {"A": lambda: moment(jnp.concatenate(_of_channels(inputs(), g), axis=1))}


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
