"""What: one synchronous update of large-minibatch SGD, as pure functions.

    worker_loss        one worker, n examples: loss, and the statistics it leaves behind
    device_gradient    one device: its lanes (vmap) and accumulation steps (scan), summed
    train_step         all devices: shard_map, lax.pmean, and the optimizer's update

The all-reduce stands in `device_gradient`, once, after the accumulation.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from lbsgd.models.normalization import subtract_distance
from lbsgd.schedule.functions import Schedule
from lbsgd.step.reduction import mean_over_lanes, over_devices, sum_over_steps
from lbsgd.step.worker import Batch, WorkerResult, with_distance
from lbsgd.workers.placement import DEVICE_AXES, Placement


class TrainState(struct.PyTreeNode):
    """All that a run has to remember.

    Attributes:
      update: the update index t, an int32 scalar: how many updates were made.
      params: parameters.
      batch_stats: running averages of batch norm; {} for a network without.
      opt_state: the optimizer's state.
      skipped: updates whose loss or gradient was not finite, an int32 scalar.
    """

    update: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    skipped: jax.Array


def device_gradient(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    placement: Placement,
    gradient_mean: Callable[[Any], Any] | None = None,
) -> tuple[Any, WorkerResult]:
    """On one device: the gradient of the mean loss over all k workers, and their mean result.

    The mean over lanes is differentiated, not each lane: the memory is that of one gradient.

    Args:
      batch: this device's part, `[A, L, n, ...]`.
      gradient_mean: the mean over devices of a tree; None for `lax.pmean`, in one with the result.
    """

    def loss(params: Any, rows: Batch, step: jax.Array) -> tuple[jax.Array, WorkerResult]:
        result = mean_over_lanes(
            functools.partial(worker, params, batch_stats), rows, step, placement
        )
        return result.loss, result

    def gradient(step_and_rows: tuple[jax.Array, Batch]) -> tuple[Any, WorkerResult]:
        step, rows = step_and_rows
        return jax.grad(loss, has_aux=True)(params, rows, step)

    steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
    gradients, result = sum_over_steps(gradient, (steps, batch), placement.platform)
    if gradient_mean is None:
        return lax.pmean((gradients, result), DEVICE_AXES)
    return gradient_mean(gradients), lax.pmean(result, DEVICE_AXES)


def all_finite(tree: Any) -> jax.Array:
    """Whether every number in the tree is finite, a bool scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


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
    """One update (Goyal et al., equation 4, with momentum and decay as the optimizer has them).

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
    if total_variance:
        worker = with_distance(worker)
    gradient = over_devices(
        functools.partial(
            device_gradient, worker=worker, placement=placement, gradient_mean=gradient_mean
        ),
        placement,
        replicated=2,
    )
    gradients, result = gradient(state.params, state.batch_stats, batch)
    changes, opt_state = optimizer.update(
        gradients, state.opt_state, state.params, update_index=state.update
    )
    stats = result.batch_stats
    if total_variance:
        stats = subtract_distance(stats, state.batch_stats)
    m = batch_norm_momentum
    finite = all_finite((result.loss, gradients))
    kept = (state.params, state.batch_stats, state.opt_state)
    changed = (
        jax.tree.map(jnp.add, state.params, changes),
        jax.tree.map(lambda r, new: m * r + (1.0 - m) * new, state.batch_stats, stats),
        opt_state,
    )
    params, batch_stats, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), changed, kept
    )
    skipped = state.skipped + jnp.where(finite, 0, 1).astype(state.skipped.dtype)
    metrics = {
        "train_loss": result.loss,
        "train_error": 100.0 * result.error,
        "gradient_norm": optax.tree.norm(gradients),
        "skipped": skipped,
        **{name: schedule(state.update) for name, schedule in schedules.items()},
    }
    if statistics:
        metrics["layers"] = statistics(gradients, state.params, changes, opt_state)
    return TrainState(state.update + 1, params, batch_stats, opt_state, skipped), metrics
