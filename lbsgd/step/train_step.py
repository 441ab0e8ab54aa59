"""Makes one synchronous update of large-minibatch SGD, by pure functions.

    worker_loss        one worker, n examples: loss, and the statistics it leaves behind
    device_gradient    one device: its lanes (vmap) and accumulation steps (scan), summed
    train_step         all devices: shard_map, lax.pmean, and the optimizer's update

The all-reduce stands in `device_gradient`, once, after the accumulation. Each phase is a
`jax.named_scope`, so that a profile and the compiled program's op names tell which it is:
`augment`, `forward` and `loss` of the workers, `accumulate`, `all_reduce`, `optimizer`,
`batch_norm_statistics`, `select_finite` and `metrics`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Int

from lbsgd.models.normalization import subtract_distance
from lbsgd.schedule.functions import Schedule
from lbsgd.step.reduction import mean_over_lanes, over_devices, sum_over_steps
from lbsgd.step.worker import Batch, WorkerResult, with_distance
from lbsgd.workers.placement import DEVICE_AXES, Placement


# Trees of shapes and of shardings are TrainStates too, which are no arrays: not to be checked.
@no_type_check
class TrainState(struct.PyTreeNode):
    """Holds all that a run has to remember.

    Attributes:
      update_index: t, an int32 scalar: how many updates were made.
      params: parameters.
      batch_stats: running averages of batch norm; {} for a network without.
      opt_state: the optimizer's state.
      skipped: updates whose loss or gradient was not finite, an int32 scalar.
    """

    update_index: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    skipped: Int[Array, ""]


def device_gradient(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    placement: Placement,
    gradient_mean: Callable[[Any], Any] | None = None,
) -> tuple[Any, WorkerResult]:
    """Computes, on one device, the gradient of the mean loss over all k workers.

    Args:
      batch: this device's part, `[A, L, n, ...]`.
      gradient_mean: the mean over devices of a tree; None for `lax.pmean`, in one with the result.

    Returns:
      the gradient, like the parameters, and the workers' mean result.
    """

    # The mean over lanes is differentiated, not each lane: the memory is that of one gradient.
    def loss(params: Any, rows: Batch, step: Int[Array, ""]) -> tuple[jax.Array, WorkerResult]:
        result = mean_over_lanes(
            functools.partial(worker, params, batch_stats), rows, step, placement
        )
        return result.loss, result

    def gradient(step_and_rows: tuple[jax.Array, Batch]) -> tuple[Any, WorkerResult]:
        step, rows = step_and_rows
        # Not value_and_grad: the value is in the result.
        return jax.grad(loss, has_aux=True)(params, rows, step)

    # A step must know its number, for in the last one some lanes may be idle.
    steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
    gradients, result = sum_over_steps(gradient, (steps, batch), placement.platform)
    with jax.named_scope("all_reduce"):
        # One call, which XLA may combine into one message: the result is small beside a gradient.
        if gradient_mean is None:
            return lax.pmean((gradients, result), DEVICE_AXES)
        # Moments of batch norm are not rounded to 16 bits, whatever gradients are sent in.
        return gradient_mean(gradients), lax.pmean(result, DEVICE_AXES)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Tells whether every number in the tree is finite."""
    # Each number, and not a norm, whose squares overflow long before the gradient does.
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _running_averages(running: Any, stats: Any, momentum: float, total_variance: bool) -> Any:
    """Moves the running averages of batch norm by one step towards this update's moments."""
    with jax.named_scope("batch_norm_statistics"):
        if total_variance:
            # By the same averages as in `with_distance`, so before these move.
            stats = subtract_distance(stats, running)
        return jax.tree.map(lambda r, new: momentum * r + (1.0 - momentum) * new, running, stats)


def _select_finite(finite: Bool[Array, ""], changed: TrainState, state: TrainState) -> TrainState:
    """Takes the changed state where the update was finite, and else the one before, but counted."""
    with jax.named_scope("select_finite"):
        # By selection on the devices: asking the host would make each update wait for the last.
        # The update index goes on, for at the same one the same minibatch would come again.
        kept = changed.replace(
            params=state.params, batch_stats=state.batch_stats, opt_state=state.opt_state
        )
        chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, kept)
        skipped = state.skipped + jnp.where(finite, 0, 1).astype(state.skipped.dtype)
        return chosen.replace(skipped=skipped)


def _metrics(
    result: WorkerResult,
    gradients: Any,
    update_index: Int[Array, ""],
    schedules: Mapping[str, Schedule],
) -> dict[str, Any]:
    """Computes what every update tells of itself: nats, percent, and the schedules' values."""
    return {
        "train_loss": result.loss,
        "train_error": 100.0 * result.error,
        "gradient_norm": optax.tree.norm(gradients),
        **{name: schedule(update_index) for name, schedule in schedules.items()},
    }


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    optimizer: optax.GradientTransformationExtraArgs,
    schedules: Mapping[str, Schedule],
    placement: Placement,
    batch_norm_momentum: float,
    total_variance: bool,
    gradient_mean: Callable[[Any], Any] | None = None,
    statistics: Callable[..., Any] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Makes one update (Goyal et al. 2017, equation 4; momentum and decay are the optimizer's).

    Where the loss or the gradient is not finite, the update leaves the state as it was, but for its
    counters: the host learns of it updates later.

    Args:
      state: donated when compiled.
      batch: the kn examples by slot, `[A, D * L, n, ...]`.
      worker: (params, batch_stats, rows) -> `WorkerResult`, e.g. `worker_loss`, bound.
      schedules: what varies with the update index, to be among the metrics, by name.
      batch_norm_momentum: 0.9 for r <- 0.9 r + 0.1 (mean over workers).
      total_variance: average mean(var) + var(mean) instead of mean(var).
      gradient_mean: see `device_gradient`.
      statistics: (gradients, params, changes, opt_state) -> what goes into the metrics as `layers`.

    Returns:
      the next state, and the metrics of this update.
    """
    gradient = functools.partial(
        device_gradient,
        worker=with_distance(worker) if total_variance else worker,
        placement=placement,
        gradient_mean=gradient_mean,
    )
    gradients, result = over_devices(gradient, placement, replicated=2)(
        state.params, state.batch_stats, batch
    )
    with jax.named_scope("optimizer"):
        # Outside of `shard_map`: all devices have these gradients, and each makes the whole update.
        changes, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, update_index=state.update_index
        )
        params = jax.tree.map(jnp.add, state.params, changes)
    batch_stats = _running_averages(
        state.batch_stats, result.batch_stats, batch_norm_momentum, total_variance
    )
    changed = TrainState(state.update_index + 1, params, batch_stats, opt_state, state.skipped)
    # The gradient too: a finite loss may have one that is not, as of a root at 0.
    after = _select_finite(all_finite((result.loss, gradients)), changed, state)
    with jax.named_scope("metrics"):
        metrics = _metrics(result, gradients, state.update_index, schedules)
        metrics["skipped"] = after.skipped
        # Of the changes as the optimizer made them, also where they were not taken: to see why.
        if statistics:
            metrics["layers"] = statistics(gradients, state.params, changes, after.opt_state)
    return after, metrics
