"""Reduces over workers: lanes (vmap), accumulation steps (scan), devices (shard_map)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from lbsgd.step.loops import fast_on, scan
from lbsgd.step.worker import Batch, WorkerResult
from lbsgd.workers.collectives.buckets import in_buckets
from lbsgd.workers.placement import DEVICE_AXES, LANE_AXIS, Placement
from lbsgd.workers.reductions import How, Reduction

Reductions = Mapping[str, How]


def over_lanes(
    worker: Callable[[Batch, Int[Array, ""]], WorkerResult],
    rows: Batch,
    step: Int[Array, ""],
    placement: Placement,
    reductions: Reductions,
) -> WorkerResult:
    """Runs the workers of one accumulation step on one device, and reduces their results.

    Of what is averaged it gives (devices / k) times the sum, so that `lax.pmean` over devices of
    the sum over steps is the mean over workers.

    Args:
      worker: (its rows, its index) -> its result.
      rows: `[L, n, ...]`.
      step: the accumulation step.
      reductions: of the metrics, by name.
    """
    real, index = placement.holds_worker(step), placement.worker_of_lane(step)
    # Two maps, of which the inner alone has a name: a group of synced batch norm reduces over it.
    groups = (placement.lanes // placement.lanes_in_group, placement.lanes_in_group)
    each = jax.tree.map(lambda x: x.reshape(groups + x.shape[1:]), (rows, index))
    results = jax.vmap(jax.vmap(worker, axis_name=LANE_AXIS))(*each)
    results = jax.tree.map(lambda x: x.reshape((placement.lanes, *x.shape[2:])), results)
    # Weighted here, and not at the end, since the loss that is differentiated must be this share.
    weight = placement.devices / placement.workers

    def share(tree: Any) -> Any:
        return jax.tree.map(lambda x: weight * sum_of_workers(x, real), tree)

    def reduced(values: Any, how: How) -> Any:
        return share(values) if how == "mean" else _reduce_lanes(values, how, real)

    metrics = {name: reduced(results.metrics[name], how) for name, how in reductions.items()}
    return WorkerResult(share(results.loss), metrics, share(results.batch_stats))


def sum_of_workers(
    x: Shaped[Array, " lanes *shape"], real: Bool[Array, " lanes"]
) -> Shaped[Array, "*shape"]:
    """Sums over those lanes of x that hold a worker."""
    # Idle slots are dropped by selection, for 0 times what is not finite is not 0.
    return jnp.sum(jnp.where(_along(real, x), x, 0), axis=0)


def _along(real: Bool[Array, " lanes"], x: jax.Array) -> jax.Array:
    return real.reshape((-1,) + (1,) * (x.ndim - 1))


def _reduce_lanes(values: Any, how: How, real: Bool[Array, " lanes"]) -> Any:
    if how == "sum":
        return jax.tree.map(lambda x: sum_of_workers(x, real), values)
    if how == "max":
        return jax.tree.map(
            lambda x: jnp.max(jnp.where(_along(real, x), x, _least(x.dtype)), axis=0), values
        )
    assert isinstance(how, Reduction)
    identity = _identity(how, jax.tree.map(lambda x: x[0], values))
    kept = jax.tree.map(lambda x, e: jnp.where(_along(real, x), x, e), values, identity)
    return _fold(how, kept)


def _least(dtype: Any) -> Any:
    """Gives what is less than all else of a type."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return jnp.asarray(-jnp.inf if floating else np.iinfo(dtype).min, dtype)


def _identity(how: Reduction, like: Any) -> Any:
    return jax.tree.map(
        lambda e, x: jnp.broadcast_to(jnp.asarray(e, x.dtype), x.shape), how.identity, like
    )


def _fold(how: Reduction, stacked: Any) -> Any:
    """Combines the entries of a tree of arrays `[count, ...]`, one after the other."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    parts = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]
    return functools.reduce(how.combine, parts)


def _combine(how: How) -> Callable[[Any, Any], Any]:
    """Gives what makes one of two values that are reduced over some workers each."""
    if isinstance(how, Reduction):
        return how.combine
    return functools.partial(jax.tree.map, jnp.maximum if how == "max" else jnp.add)


def mean_over_devices(
    result: WorkerResult, reductions: Reductions, platform: str, *with_it: Any
) -> Any:
    """Reduces over devices what `over_lanes` left, summed over steps; within `shard_map`.

    Args:
      platform: of the devices.
      with_it: trees to be averaged, in one message.

    Returns:
      the result, and those trees.
    """
    # One call for all: the result is small beside a gradient.
    means = {name: result.metrics[name] for name, how in reductions.items() if how == "mean"}
    mean = _mean_over_devices((result._replace(metrics=means), *with_it), platform)
    others = {
        name: _over_devices(how, result.metrics[name])
        for name, how in reductions.items()
        if how != "mean"
    }
    return mean[0]._replace(metrics={**mean[0].metrics, **others}), *mean[1:]


def _mean_over_devices(tree: Any, platform: str) -> Any:
    """Averages a tree over devices, on CPUs in one message for each type."""
    # Compilers for GPUs and TPUs combine the arrays of one call into messages; on a CPU each array
    # is a message, and a network's many small ones take longer than its bytes.
    if platform != "cpu" or lax.axis_size(DEVICE_AXES) == 1:
        return lax.pmean(tree, DEVICE_AXES)
    leaves, structure = jax.tree.flatten(tree)
    mean = functools.partial(lax.pmean, axis_name=DEVICE_AXES)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        which = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        whole = sum(leaves[i].size for i in which)
        means = in_buckets(mean, [leaves[i] for i in which], capacity=whole, multiple=1)
        for i, leaf in zip(which, means):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _over_devices(how: How, value: Any) -> Any:
    if how == "sum":
        return lax.psum(value, DEVICE_AXES)
    if how == "max":
        # Not by `lax.pmax`, which on CPUs loses a NaN beside numbers.
        gathered = lax.all_gather(value, DEVICE_AXES)
        return jax.tree.map(lambda x: jnp.max(x, axis=0), gathered)
    assert isinstance(how, Reduction)
    return how.finish(_fold(how, lax.all_gather(value, DEVICE_AXES)))


_add = functools.partial(jax.tree.map, jnp.add)
_zeros = functools.partial(jax.tree.map, lambda s: jnp.zeros(s.shape, s.dtype))


def sum_over_steps(
    f: Callable[[Any], Any],
    steps: Any,
    platform: str,
    *,
    add: Callable[[Any, Any], Any] = _add,
    start: Callable[[Any], Any] = _zeros,
) -> Any:
    """Accumulates f(steps[a]) over a by `lax.scan`, so that only one step is in memory at a time.

    Args:
      steps: a tree of arrays `[A, ...]`.
      platform: of the devices, as for `loops.scan`.
      add: (total, terms) -> total; by default the sum.
      start: shapes of what f gives -> the total that `add` begins with; by default zeros.
    """
    first = jax.tree.map(lambda x: x[0], steps)
    # Without a loop there is no sum to be kept beside the gradient: one gradient's memory less.
    if jax.tree.leaves(steps)[0].shape[0] == 1:
        return fast_on(platform, f)(first)

    def accumulate(total: Any, step: Any) -> tuple[Any, None]:
        terms = f(step)
        with jax.named_scope("accumulate"):
            return add(total, terms), None

    return scan(accumulate, start(jax.eval_shape(f, first)), steps, platform)[0]


def add_results(total: WorkerResult, terms: WorkerResult, reductions: Reductions) -> WorkerResult:
    """Adds the result of an accumulation step to that of those before it."""
    metrics = {
        name: _combine(how)(total.metrics[name], terms.metrics[name])
        for name, how in reductions.items()
    }
    loss, stats = _add((total.loss, total.batch_stats), (terms.loss, terms.batch_stats))
    return WorkerResult(loss, metrics, stats)


def no_result(shapes: WorkerResult, reductions: Reductions) -> WorkerResult:
    """Makes the result of no step, to which `add_results` can add."""

    def start(how: How, like: Any) -> Any:
        if isinstance(how, Reduction):
            return _identity(how, like)
        if how == "max":
            return jax.tree.map(lambda s: jnp.full(s.shape, _least(s.dtype)), like)
        return _zeros(like)

    metrics = {name: start(how, shapes.metrics[name]) for name, how in reductions.items()}
    loss, stats = _zeros((shapes.loss, shapes.batch_stats))
    return WorkerResult(loss, metrics, stats)


def over_devices(
    f: Callable[..., Any],
    placement: Placement,
    *,
    replicated: int,
    others: tuple[Any, ...] = (),
    out_specs: Any = None,
) -> Any:
    """Wraps `f(*replicated arguments, *others, batch)` to run on every device, by `shard_map`.

    To be called within `jax.jit`.

    Args:
      replicated: how many arguments are alike on all devices.
      others: how further arguments are partitioned, a prefix of each.
      out_specs: how what f returns is partitioned; None where it is alike on all devices.
    """
    whole = PartitionSpec()
    specs = (whole,) * replicated + others + (placement.batch_spec,)
    # Collectives over a vmap axis cannot be traced with `check_vma`. It would also have JAX sum the
    # gradient of a replicated argument over devices by itself, and `lax.pmean` then give that sum.
    # The mesh is an abstract one: the arguments say which devices these are.
    return jax.shard_map(
        f,
        mesh=placement.abstract_mesh,
        in_specs=specs,
        out_specs=out_specs or whole,
        check_vma=False,
    )
