"""Makes one synchronous update of large-minibatch SGD, by pure functions.

    worker_loss        one worker, n examples: loss, and the statistics it leaves behind
    device_gradient    one device: its lanes (vmap) and accumulation steps (scan), summed
    train_step         all devices: shard_map, lax.pmean, and the optimizer's update

The all-reduce stands in `device_gradient`, once, after the accumulation (of natural gradients the
exchange is `step.second_order`'s). Each phase is a `jax.named_scope`, so that a profile and the
compiled program's op names tell which it is: `augment`, `forward` and `loss` of the workers,
`accumulate`, `all_reduce`, `optimizer`, `batch_norm_statistics`, `ema`, `select_finite` and
`metrics`; of natural gradients also `fisher` and `precondition`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from lbsgd.models.normalization import subtract_distance
from lbsgd.models.selection import trained_part, with_frozen
from lbsgd.step.numbers import Numbers
from lbsgd.step.reduction import (
    Reductions,
    add_results,
    mean_over_devices,
    no_result,
    over_devices,
    over_lanes,
    sum_over_steps,
)
from lbsgd.step.running_mixup import Mixed
from lbsgd.step.second_order import SecondOrder, natural_gradient, refreshed_percent
from lbsgd.step.worker import Batch, Worker, WorkerResult, gradient_of, with_distance
from lbsgd.workers.placement import Placement


@no_type_check
class Averaged(NamedTuple):
    """Holds averages over updates of what an evaluation needs."""

    params: Any
    batch_stats: Any


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
      ema: the exponential moving average of parameters and statistics; None for a run without.
      curvature: what a second-order optimizer keeps of statistics, each device what it owns of
        them; None for a run without.
      mixed: the minibatch that the last update trained on, for running mixup, each device its
        slots'; None without.
    """

    update_index: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    skipped: Int[Array, ""]
    ema: "Averaged | None" = None
    curvature: Any = None
    mixed: "Mixed | None" = None


def local_gradient(
    params: Any,
    batch_stats: Any,
    numbers: Numbers,
    batch: Batch,
    *,
    worker: Worker,
    reductions: Reductions,
    placement: Placement,
    trained: Any = None,
    rows_of_step: Callable[[Batch, Int[Array, ""]], Batch] | None = None,
) -> tuple[Any, WorkerResult]:
    """Computes, on one device, its part of the gradient of the mean loss over all k workers.

    Args:
      batch: this device's part, `[A, L, n, ...]`.
      reductions: of the workers' metrics, by name.
      trained: like the parameters, True where they are trained; None for all of them.
      rows_of_step: (rows of an accumulation step, its number) -> what the workers take.

    Returns:
      what the mean over devices is the gradient of, like the trained parameters, and the results of
      the device's workers, to be reduced by `mean_over_devices`.
    """

    # The mean over lanes is differentiated, not each lane: the memory is that of one gradient.
    def gradient(step_and_rows: tuple[jax.Array, Batch]) -> tuple[Any, WorkerResult]:
        step, rows = step_and_rows
        if rows_of_step:
            rows = rows_of_step(rows, step)

        def loss(params: Any) -> tuple[jax.Array, WorkerResult]:
            bound = functools.partial(worker, params, batch_stats, numbers)
            result = over_lanes(bound, rows, step, placement, reductions)
            return result.loss, result

        return gradient_of(loss, params, trained)

    def add(total: tuple[Any, WorkerResult], terms: tuple[Any, WorkerResult]) -> Any:
        gradients = jax.tree.map(jnp.add, total[0], terms[0])
        return gradients, add_results(total[1], terms[1], reductions)

    def start(shapes: tuple[Any, WorkerResult]) -> Any:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[0])
        return zeros, no_result(shapes[1], reductions)

    # A step must know its number, for in the last one some lanes may be idle.
    steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
    found: tuple[Any, WorkerResult] = sum_over_steps(
        gradient, (steps, batch), placement.platform, add=add, start=start
    )
    return found


def device_gradient(
    *args: Any,
    reductions: Reductions,
    placement: Placement,
    gradient_mean: Callable[[Any], Any] | None = None,
    **keywords: Any,
) -> tuple[Any, WorkerResult]:
    """Computes, on one device, the gradient of the mean loss over all k workers.

    Args:
      args, reductions, placement, keywords: as of `local_gradient`.
      gradient_mean: the mean over devices of a tree; None for `lax.pmean`, in one with the result.

    Returns:
      the gradient, like the trained parameters, and the workers' results, reduced.
    """
    gradients, result = local_gradient(
        *args, reductions=reductions, placement=placement, **keywords
    )
    mean = functools.partial(mean_over_devices, result, reductions, placement.platform)
    with jax.named_scope("all_reduce"):
        if gradient_mean is None:
            result, gradients = mean(gradients)
            return gradients, result
        # Moments of batch norm are not rounded to 16 bits, whatever gradients are sent in.
        return gradient_mean(gradients), *mean()


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Tells whether every number in the tree is finite."""
    # Each number, and not a norm, whose squares overflow long before the gradient does.
    each = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    # XLA for CPUs repeats what is cheap within each kernel that asks for it: all of these flags for
    # each array that they decide on, the square of their number. A root is not cheap, while an
    # `optimization_barrier` is gone there before kernels are made.
    return jnp.sqrt(jnp.all(jnp.stack(each)).astype(jnp.float32)) > 0


def _running_averages(
    running: Any, stats: Any, of_step: Any, momentum: Float[Array, ""], total_variance: bool
) -> Any:
    """Moves the running averages of batch norm by one step towards this update's moments."""
    with jax.named_scope("batch_norm_statistics"):
        if total_variance:
            # By the same averages as in `with_distance`, so before these move.
            stats = subtract_distance(stats, running, of_step)

        def moved(r: jax.Array, new: jax.Array, moments: bool) -> jax.Array:
            m = jnp.asarray(momentum, r.dtype)
            # What is not moments, a network's own norm has moved already, by a momentum of its own.
            return m * r + (1.0 - m) * new if moments else new

        return jax.tree.map(moved, running, stats, of_step)


def _select_finite(finite: Bool[Array, ""], changed: TrainState, state: TrainState) -> TrainState:
    """Takes the changed state where the update was finite, and else the one before, but counted."""
    with jax.named_scope("select_finite"):
        # By selection on the devices: asking the host would make each update wait for the last.
        # The update index goes on, for at the same one the same minibatch would come again.
        kept = state.replace(update_index=changed.update_index)
        chosen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, kept)
        skipped = state.skipped + jnp.where(finite, 0, 1).astype(state.skipped.dtype)
        return chosen.replace(skipped=skipped)


def _averaged(average: Any, moving: Averaged, decay: Float[Array, ""]) -> Any:
    """Moves the exponential moving average of what itself moves, where there is an average.

    Args:
      moving: parameters and statistics, None in place of those that are frozen: their average is
        what they are, to the bit.
    """
    if average is None:
        return None
    with jax.named_scope("ema"):

        def moved(new: jax.Array | None, e: Any) -> Any:
            if new is None:
                return e
            d = jnp.asarray(decay, e.dtype)
            return d * e + (1.0 - d) * new

        return jax.tree.map(moved, moving, average, is_leaf=lambda x: x is None)


def train_step(
    state: TrainState,
    batch: Batch,
    numbers: Numbers,
    *,
    worker: Worker,
    reductions: Reductions,
    optimizer: optax.GradientTransformationExtraArgs,
    placement: Placement,
    of_step: Any,
    trained: Any = None,
    total_variance: bool = False,
    gradient_mean: Callable[[Any], Any] | None = None,
    statistics: Callable[..., Any] | None = None,
    second_order: SecondOrder | None = None,
    running_mixup: Callable[[Any, Batch], tuple[Batch, Mixed]] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Makes one update (Goyal et al. 2017, equation 4; momentum and decay are the optimizer's).

    Where the loss or the gradient is not finite, the update leaves the state as it was, but for its
    counters: the host learns of it updates later.

    Args:
      state: donated when compiled.
      batch: the kn examples by slot, `[A, D * L, n, ...]`.
      numbers: of this update; its index is the state's.
      worker: e.g. `worker_loss`, bound.
      reductions: of the workers' metrics, by name.
      optimizer: takes the update index and `numbers.optimizer` by keyword.
      of_step: like the batch statistics, True where they are moments whose average moves here;
        others are taken as the network leaves them, averaged over workers. None where they are
        frozen, and the network leaves none.
      trained: like the parameters, True where they are trained; None for all of them. Of the others
        the optimizer sees None in their place, and nothing is computed.
      total_variance: average mean(var) + var(mean) instead of mean(var).
      gradient_mean: see `device_gradient`.
      statistics: (gradients, params, changes, opt_state) -> what goes into the metrics as `layers`;
        of what is trained.
      second_order: the optimizer is given natural gradients, made so.
      running_mixup: `step.running_mixup.running_mixup`, bound; the state then has `mixed`.

    Returns:
      the next state, and the metrics of this update.
    """
    # The only counter of a run; the host's is not asked.
    numbers = numbers._replace(update_index=state.update_index)
    worker = with_distance(worker, of_step) if total_variance else worker
    mixed = state.mixed
    if running_mixup:
        batch, mixed = running_mixup(mixed, batch)
    own = {
        "worker": worker,
        "placement": placement,
        "trained": trained,
        "reductions": reductions,
    }
    args = state.params, state.batch_stats, numbers
    curvature = norm = None
    if second_order:
        gradients, curvature, norm, result = natural_gradient(
            *args, state.curvature, batch, local=local_gradient, second_order=second_order, **own
        )
    else:
        gradient = functools.partial(device_gradient, gradient_mean=gradient_mean, **own)
        gradients, result = over_devices(gradient, placement, replicated=3)(*args, batch)
    with jax.named_scope("optimizer"):
        # Outside of `shard_map`: all devices have these gradients, and each makes the whole update.
        told = {"update_index": state.update_index, **numbers.optimizer}
        before = trained_part(state.params, trained)
        changes, opt_state = optimizer.update(gradients, state.opt_state, before, **told)
        part = jax.tree.map(jnp.add, before, changes)
        params = with_frozen(part, state.params)
    batch_stats, moving_stats = state.batch_stats, None
    if of_step is not None:
        batch_stats = moving_stats = _running_averages(
            batch_stats, result.batch_stats, of_step, numbers.batch_norm_momentum, total_variance
        )
    ema = _averaged(state.ema, Averaged(part, moving_stats), numbers.ema_decay)
    changed = TrainState(
        state.update_index + 1, params, batch_stats, opt_state, state.skipped, ema, curvature, mixed
    )
    # The gradient too: a finite loss may have one that is not, as of a root at 0.
    after = _select_finite(all_finite((result.loss, gradients)), changed, state)
    with jax.named_scope("metrics"):
        metrics = {f"train_{name}": value for name, value in result.metrics.items()}
        metrics["train_loss"] = result.loss
        metrics["gradient_norm"] = optax.tree.norm(gradients) if norm is None else norm
        metrics["skipped"] = after.skipped
        if second_order and state.curvature:
            refreshed = refreshed_percent(second_order, numbers, state.curvature)
            metrics["statistics_refreshed_percent"] = refreshed
        # Of the changes as the optimizer made them, also where they were not taken: to see why.
        if statistics:
            metrics["layers"] = statistics(gradients, before, changes, after.opt_state)
    return after, metrics


def train_steps(
    state: TrainState, batches: Batch, numbers: Numbers, *, step: Callable[..., Any]
) -> tuple[TrainState, dict[str, Any]]:
    """Makes several updates one after the other, in one program.

    Args:
      state: donated when compiled.
      batches: of U updates, `[U, A, D * L, n, ...]`.
      numbers: of each update `[U]`, or a scalar where they are the same.
      step: `train_step`, bound.

    Returns:
      the state after them, and the metrics of each, `[U, ...]`.
    """
    count = jax.tree.leaves(batches)[0].shape[0]
    numbers = jax.tree.map(lambda x: jnp.broadcast_to(x, (count,)), numbers)
    # Not `loops.scan`, which can bring convolutions into a CPU's form only within `shard_map`,
    # where the update itself has done so.
    found: tuple[TrainState, dict[str, Any]] = jax.lax.scan(
        lambda state, of_update: step(state, *of_update), state, (batches, numbers)
    )
    return found
