"""Reduces over workers: lanes (vmap), accumulation steps (scan), devices (shard_map)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from lbsgd.step.loops import scan
from lbsgd.step.worker import Batch, WorkerResult
from lbsgd.workers.placement import LANE_AXIS, Placement


def mean_over_lanes(
    worker: Callable[[Batch], WorkerResult],
    rows: Batch,
    step: Int[Array, ""],
    placement: Placement,
) -> WorkerResult:
    """Runs the workers of one accumulation step on one device, to their share of the mean over k.

    The share is (devices / k) times their sum, so that `lax.pmean` over devices of the sum over
    steps is the mean over workers.

    Args:
      rows: `[L, n, ...]`.
      step: the accumulation step.
    """
    real = placement.holds_worker(step)
    # Two maps, of which the inner alone has a name: a group of synced batch norm reduces over it.
    groups = (placement.lanes // placement.lanes_in_group, placement.lanes_in_group)
    rows = jax.tree.map(lambda x: x.reshape(groups + x.shape[1:]), rows)
    results = jax.vmap(jax.vmap(worker, axis_name=LANE_AXIS))(rows)
    # Weighted here, and not at the end, since the loss that is differentiated must be this share.
    weight = placement.devices / placement.workers

    def share(x: jax.Array) -> jax.Array:
        return weight * sum_of_workers(x.reshape((placement.lanes, *x.shape[2:])), real)

    return jax.tree.map(share, results)


def sum_of_workers(
    x: Shaped[Array, " lanes *shape"], real: Bool[Array, " lanes"]
) -> Shaped[Array, "*shape"]:
    """Sums over those lanes of x that hold a worker."""
    keep = real.reshape((-1,) + (1,) * (x.ndim - 1))
    # Idle slots are dropped by selection, for 0 times what is not finite is not 0.
    return jnp.sum(jnp.where(keep, x, 0), axis=0)


def sum_over_steps(f: Callable[[Any], Any], steps: Any, platform: str) -> Any:
    """Accumulates sum_a f(steps[a]) by `lax.scan`, so that only one step is in memory at a time.

    Args:
      steps: a tree of arrays `[A, ...]`.
      platform: of the devices, as for `loops.scan`.
    """
    first = jax.tree.map(lambda x: x[0], steps)
    # Without a loop there is no sum to be kept beside the gradient: one gradient's memory less.
    if jax.tree.leaves(steps)[0].shape[0] == 1:
        return f(first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, first))

    def add(total: Any, step: Any) -> tuple[Any, None]:
        terms = f(step)
        with jax.named_scope("accumulate"):
            return jax.tree.map(jnp.add, total, terms), None

    return scan(add, zeros, steps, platform)[0]


def over_devices(f: Callable[..., Any], placement: Placement, *, replicated: int) -> Any:
    """Wraps `f(*replicated arguments, batch)` to run on every device, by `shard_map`.

    What f returns must be alike on all devices. To be called within `jax.jit`.
    """
    specs = (PartitionSpec(),) * replicated + (placement.batch_spec,)
    # Collectives over a vmap axis cannot be traced with `check_vma`. It would also have JAX sum the
    # gradient of a replicated argument over devices by itself, and `lax.pmean` then give that sum.
    # The mesh is an abstract one: the arguments say which devices these are.
    return jax.shard_map(
        f, mesh=placement.abstract_mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
    )
