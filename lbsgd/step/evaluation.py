"""Evaluates: sums over validation examples, and the moments of precise batch norm."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lbsgd.models.normalization import subtract_distance
from lbsgd.step.losses import cross_entropy, wrong_at
from lbsgd.step.reduction import mean_over_lanes, over_devices, sum_over_steps
from lbsgd.step.worker import Batch, WorkerResult, with_distance
from lbsgd.workers.placement import DEVICE_AXES, Placement


class EvalSums(NamedTuple):
    """Sums over examples: loss, wrong at top-1 and top-5, and how many there were."""

    loss: jax.Array
    wrong: jax.Array
    wrong_top5: jax.Array
    examples: jax.Array


def moments_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    worker: Callable[..., WorkerResult],
    placement: Placement,
    total_variance: bool,
) -> Any:
    """The batch-norm moments of one minibatch with fixed parameters, averaged over its workers.

    Averaged over several minibatches they are the statistics of "precise" batch norm (Goyal et
    al., section 5.1, on evaluating early; Wu and Johnson 2021).
    """
    if total_variance:
        worker = with_distance(worker)

    def on_device(params: Any, batch_stats: Any, batch: Batch) -> Any:
        def moments(step_and_rows: tuple[jax.Array, Batch]) -> Any:
            step, rows = step_and_rows
            bound = functools.partial(worker, params, batch_stats)
            return mean_over_lanes(bound, rows, step, placement).batch_stats

        steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
        stats = lax.pmean(sum_over_steps(moments, (steps, batch), placement.platform), DEVICE_AXES)
        return subtract_distance(stats, batch_stats) if total_variance else stats

    return over_devices(on_device, placement, replicated=2)(params, batch_stats, batch)


def eval_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    model: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    placement: Placement,
) -> EvalSums:
    """Sums over the examples of a batch whose `mask` is set.

    Args:
      batch: image `[1, D * L, e, ...]`, label and mask `[1, D * L, e]`.
    """

    def on_device(params: Any, batch_stats: Any, batch: Batch) -> EvalSums:
        images, labels, mask = (
            batch[key].reshape((-1, *batch[key].shape[3:])) for key in ("image", "label", "mask")
        )
        variables = {"params": params, "batch_stats": batch_stats}
        logits = model.apply(variables, preprocess(images), train=False)
        loss = jnp.where(mask, cross_entropy(logits, labels), 0)
        wrong, wrong_top5 = (mask & wrong_at(k, logits, labels) for k in (1, 5))
        return lax.psum(EvalSums(*map(jnp.sum, (loss, wrong, wrong_top5, mask))), DEVICE_AXES)

    return over_devices(on_device, placement, replicated=2)(params, batch_stats, batch)
