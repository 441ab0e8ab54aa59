"""Takes natural gradients in place of gradients: the statistics, and what is made of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lbsgd.step.fisher import Fisher, probed, probing, scales, with_lanes
from lbsgd.step.numbers import Numbers
from lbsgd.step.reduction import Reductions, mean_over_devices, over_devices
from lbsgd.step.worker import Batch, Worker, WorkerResult
from lbsgd.workers.placement import Placement


class Exchanged(Protocol):
    """Holds what comes of the gradients of all devices."""

    @property
    def natural(self) -> Any:
        """The natural gradient, like the parameters."""

    @property
    def curvature(self) -> Any:
        """What is kept of statistics."""

    @property
    def norm(self) -> jax.Array:
        """Of the gradient."""


class Preconditions(Protocol):
    """Makes natural gradients of the gradients and statistics that devices have."""

    @property
    def sharing(self) -> Any:
        """Says how layers are shared out."""

    def init(self, dtype: Any) -> Any:
        """Makes what is kept of statistics at the start, as it is stored; None for nothing."""

    def specs(self) -> Any:
        """Says how that is partitioned over devices."""

    def stored(self, curvature: Any) -> Any:
        """Gives it the form of checkpoints, of no number of devices."""

    def from_stored(self, curvature: Any) -> Any:
        """Gives what `stored` gives its form for these devices."""

    def due(self, curvature: Any, update_index: jax.Array) -> Any:
        """Tells which statistics an update takes, by layer and key; None for all."""

    @property
    def __call__(self) -> Callable[..., Exchanged]:
        """Makes the natural gradient, within `shard_map`; see `lbsgd.optim.preconditioner`."""


class SecondOrder(NamedTuple):
    """Says how natural gradients are made.

    Attributes:
      fisher: which statistics are taken.
      precondition: makes natural gradients of them, and keeps them.
    """

    fisher: Fisher
    precondition: Preconditions


def refreshed_percent(second_order: SecondOrder, numbers: Numbers, curvature: Any) -> jax.Array:
    """Computes how many of all statistics an update refreshes, in percent of their number."""
    flags = jax.tree.leaves(second_order.precondition.due(curvature, numbers.update_index))
    return 100 * jnp.mean(jnp.stack(flags).astype(jnp.float32))


def natural_gradient(
    params: Any,
    batch_stats: Any,
    numbers: Numbers,
    curvature: Any,
    batch: Batch,
    *,
    local: Callable[..., tuple[Any, WorkerResult]],
    second_order: SecondOrder,
    worker: Worker,
    placement: Placement,
    reductions: Reductions,
    trained: Any = None,
) -> tuple[Any, Any, jax.Array, WorkerResult]:
    """Computes the natural gradient of the mean loss over all k workers.

    Args:
      curvature: what is kept of statistics.
      local: `train_step.local_gradient`; the other arguments are its.

    Returns:
      the natural gradient, what is kept now, the norm of the gradient, and the workers' results.
    """
    fisher, precondition = second_order
    specs, whole = precondition.specs(), PartitionSpec()

    def on_device(
        params: Any, batch_stats: Any, numbers: Numbers, curvature: Any, batch: Batch
    ) -> Any:
        due = precondition.due(curvature, numbers.update_index)
        with_sinks, learned = probed(params, trained, fisher, due)
        sums, result = local(
            with_sinks,
            batch_stats,
            numbers,
            batch,
            worker=probing(worker, fisher),
            placement=placement,
            trained=learned,
            reductions=reductions,
            rows_of_step=functools.partial(with_lanes, placement=placement),
        )
        with jax.named_scope("all_reduce"):
            (result,) = mean_over_devices(result, reductions, placement.platform)
        with jax.named_scope("precondition"):
            found = precondition(
                sums.params,
                sums.sinks,
                curvature,
                scales=scales(fisher, placement),
                batch_size=placement.batch_size,
                update_index=numbers.update_index,
                damping=numbers.optimizer["damping"],
                norm_damping=numbers.optimizer["norm_damping"],
                after=result,
            )
        return (found.natural, found.curvature, found.norm), result

    found, result = over_devices(
        on_device,
        placement,
        replicated=3,
        others=(specs,),
        out_specs=((whole, specs, whole), whole),
    )(params, batch_stats, numbers, curvature, batch)
    return *found, result
