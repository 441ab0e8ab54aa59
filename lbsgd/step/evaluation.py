"""Evaluates a state: sums over validation examples, and the moments of precise batch norm."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from lbsgd.models.normalization import subtract_distance
from lbsgd.step.losses import cross_entropy, wrong_at
from lbsgd.step.reduction import mean_over_lanes, over_devices, sum_over_steps
from lbsgd.step.worker import Batch, WorkerResult, with_distance
from lbsgd.workers.placement import DEVICE_AXES, Placement


class EvalSums(NamedTuple):
    """Sums over examples, of which evaluation makes its means.

    Attributes:
      loss: cross-entropy, nats.
      wrong: examples whose label is not the largest logit's (top-1).
      wrong_top5: those whose label is not among the five largest.
      examples: how many there were.
    """

    loss: Float[Array, ""]
    wrong: Int[Array, ""]
    wrong_top5: Int[Array, ""]
    examples: Int[Array, ""]


def moments_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    placement: Placement,
    total_variance: bool,
) -> Any:
    """Computes the batch-norm moments of a minibatch with fixed parameters, averaged over workers.

    Averaged over several minibatches they are the statistics of "precise" batch norm (Goyal et
    al., section 5.1, on evaluating early; Wu and Johnson 2021).

    Args:
      batch: the kn examples by slot, `[A, D * L, n, ...]`.
      worker: as in `train_step`.
      total_variance: average mean(var) + var(mean) instead of mean(var).

    Returns:
      a tree like `batch_stats`.
    """
    if total_variance:
        worker = with_distance(worker)

    def on_device(params: Any, batch_stats: Any, batch: Batch) -> Any:
        def moments(step_and_rows: tuple[jax.Array, Batch]) -> Any:
            step, rows = step_and_rows
            bound = functools.partial(worker, params, batch_stats)
            # The loss is not used, and the compiler drops what only the loss needs.
            return mean_over_lanes(bound, rows, step, placement).batch_stats

        steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
        stats = sum_over_steps(moments, (steps, batch), placement.platform)
        with jax.named_scope("all_reduce"):
            stats = lax.pmean(stats, DEVICE_AXES)
        # After the mean over all workers: what is subtracted is the square of that mean.
        return subtract_distance(stats, batch_stats) if total_variance else stats

    return over_devices(on_device, placement, replicated=2)(params, batch_stats, batch)


def eval_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    model: Any,
    preprocess: Callable[[UInt8[Array, "n h w c"]], Float[Array, "n h w c"]],
    placement: Placement,
) -> EvalSums:
    """Evaluates the examples of a batch whose `mask` is set, summed over all devices.

    Args:
      batch: image `[1, D * L, e, ...]`, label and mask `[1, D * L, e]`.
      preprocess: uint8 images -> input of the network.
    """

    def on_device(params: Any, batch_stats: Any, batch: Batch) -> EvalSums:
        # Evaluated as one batch: running averages make an example's output its own.
        images, labels, mask = (
            batch[key].reshape((-1, *batch[key].shape[3:])) for key in ("image", "label", "mask")
        )
        variables = {"params": params, "batch_stats": batch_stats}
        with jax.named_scope("forward"):
            logits = model.apply(variables, preprocess(images), train=False)
        with jax.named_scope("metrics"):
            # Selected, not multiplied by 0: what a padded row gives may not be finite.
            loss = jnp.where(mask, cross_entropy(logits, labels), 0)
            wrong, wrong_top5 = (mask & wrong_at(k, logits, labels) for k in (1, 5))
            # Sums, not means: where rows are padding, devices hold different numbers of examples.
            sums = EvalSums(*map(jnp.sum, (loss, wrong, wrong_top5, mask)))
        with jax.named_scope("all_reduce"):
            return lax.psum(sums, DEVICE_AXES)

    return over_devices(on_device, placement, replicated=2)(params, batch_stats, batch)
