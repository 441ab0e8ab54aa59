"""Evaluates a state: sums over validation examples, and the moments of precise batch norm."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped, UInt8

from lbsgd.models.normalization import subtract_distance
from lbsgd.step.loops import fast_on
from lbsgd.step.numbers import Numbers
from lbsgd.step.reduction import over_devices, over_lanes, sum_over_steps
from lbsgd.step.worker import Batch, Worker, with_distance
from lbsgd.workers.placement import DEVICE_AXES, Placement

# Beside the task's own sums: how many examples there were.
EXAMPLES = "examples"


def moments_step(
    params: Any,
    batch_stats: Any,
    numbers: Numbers,
    batch: Batch,
    *,
    worker: Worker,
    placement: Placement,
    of_step: Any,
    total_variance: bool = False,
) -> Any:
    """Computes the batch-norm moments of a minibatch with fixed parameters, averaged over workers.

    Averaged over several minibatches they are the statistics of "precise" batch norm (Goyal et
    al., section 5.1, on evaluating early; Wu and Johnson 2021).

    Args:
      batch: the kn examples by slot, `[A, D * L, n, ...]`.
      numbers, worker, of_step: as in `train_step`.
      total_variance: average mean(var) + var(mean) instead of mean(var).

    Returns:
      a tree like `batch_stats`; what is no moment in it is as it was.
    """
    if total_variance:
        worker = with_distance(worker, of_step)

    def on_device(params: Any, batch_stats: Any, numbers: Numbers, batch: Batch) -> Any:
        def moments(step_and_rows: tuple[jax.Array, Batch]) -> Any:
            step, rows = step_and_rows
            bound = functools.partial(worker, params, batch_stats, numbers)
            # The loss is not used, and the compiler drops what only the loss needs.
            return over_lanes(bound, rows, step, placement, {}).batch_stats

        steps = jnp.arange(placement.accumulation_steps, dtype=jnp.int32)
        stats = sum_over_steps(moments, (steps, batch), placement.platform)
        with jax.named_scope("all_reduce"):
            stats = lax.pmean(stats, DEVICE_AXES)
        # After the mean over all workers: what is subtracted is the square of that mean.
        if total_variance:
            stats = subtract_distance(stats, batch_stats, of_step)
        return jax.tree.map(
            lambda new, old, ours: new if ours else old, stats, batch_stats, of_step
        )

    return over_devices(on_device, placement, replicated=3)(params, batch_stats, numbers, batch)


def eval_step(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    network: Callable[..., Any],
    preprocess: Callable[[UInt8[Array, "n h w c"]], Float[Array, "n h w c"]],
    evaluate: Callable[[Any, Batch], Mapping[str, Any]],
    placement: Placement,
) -> dict[str, Array]:
    """Evaluates the examples of a batch whose `mask` is set, summed over all devices.

    Args:
      batch: image `[1, D * L, e, ...]`, targets likewise, and mask `[1, D * L, e]`.
      network: (params, batch_stats, images) -> outputs.
      preprocess: uint8 images -> input of the network.
      evaluate: (outputs, batch) -> by name an array `[n, ...]`; see `lbsgd.tasks.Task`.

    Returns:
      their sums by name, and the number of `EXAMPLES`.
    """

    def on_device(params: Any, batch_stats: Any, batch: Batch) -> dict[str, Array]:
        # Evaluated as one batch: running averages make an example's output its own.
        rows = {key: x.reshape((-1, *x.shape[3:])) for key, x in batch.items()}
        mask = rows.pop("mask")
        with jax.named_scope("forward"):
            evaluated = fast_on(placement.platform, network)
            outputs = evaluated(params, batch_stats, preprocess(rows["image"]))
        with jax.named_scope("metrics"):
            # Sums, not means: where rows are padding, devices hold different numbers of examples.
            sums = {key: masked_sum(x, mask) for key, x in evaluate(outputs, rows).items()}
            sums[EXAMPLES] = jnp.sum(mask)
        with jax.named_scope("all_reduce"):
            return lax.psum(sums, DEVICE_AXES)

    return over_devices(on_device, placement, replicated=2)(params, batch_stats, batch)


def mirrored(network: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a network of logits to see each image and its mirror image (test-time flip).

    Args:
      network: (params, batch_stats, images) -> logits `[n, outputs]`.

    Returns:
      a function of the same arguments. The softmax of its logits is the mean of the two softmaxes,
      as Krizhevsky et al. 2012 (section 4.1) average the predictions of their crops.
    """

    def flipped(
        params: Any, batch_stats: Any, images: Float[Array, "n h w c"]
    ) -> Float[Array, "n outputs"]:
        whole, mirror = (
            jax.nn.log_softmax(network(params, batch_stats, x))
            for x in (images, images[:, :, ::-1])
        )
        # Of logarithms, for a probability may be less than the least float.
        return jnp.logaddexp(whole, mirror) - math.log(2.0)

    return flipped


def masked_sum(x: Shaped[Array, " n *shape"], mask: Bool[Array, " n"]) -> Shaped[Array, "*shape"]:
    """Sums over the rows of x whose mask is set."""
    along = mask.reshape((-1,) + (1,) * (x.ndim - 1))
    # Selected, not multiplied by 0: what a padded row gives may not be finite.
    return jnp.sum(jnp.where(along, x, jnp.zeros_like(x)), axis=0)
