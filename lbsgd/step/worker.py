"""The loss of one worker over its n examples, and the statistics it leaves behind."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lbsgd.models.normalization import add_distance
from lbsgd.step.losses import cross_entropy, wrong_at
from lbsgd.step.pixels import erase, mix, partner

Batch = Mapping[str, jax.Array]


class WorkerResult(NamedTuple):
    """What a worker knows after its n examples; averaged over workers, what an update knows.

    Attributes:
      loss: mean cross-entropy.
      error: top-1 error, a fraction; of mixed examples, against their own label.
      batch_stats: the moments of its batch norms; {} of a network without.
    """

    loss: jax.Array
    error: jax.Array
    batch_stats: Any


def worker_loss(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    model: Any,
    preprocess: Callable[[jax.Array], jax.Array],
    label_smoothing: float,
) -> WorkerResult:
    """One worker: the loss of its n examples, batch norm seeing exactly those (equation 5).

    Args:
      batch: image, label, and what `Mixing.draw` drew for them, each `[n, ...]`.
      preprocess: uint8 images -> input of the network.
    """
    images = preprocess(batch["image"])
    if "erase_box" in batch:
        images = erase(images, batch["erase_box"])
    if "mix_share" in batch:
        images = mix(images, batch["mix_share"], batch.get("mix_box"))
    logits, left = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    losses = cross_entropy(logits, batch["label"], label_smoothing)
    if "mix_share" in batch:
        share = batch["mix_share"].astype(losses.dtype)
        others = cross_entropy(logits, partner(batch["label"]), label_smoothing)
        losses = share * losses + (1 - share) * others
    loss = jnp.mean(losses)
    error = jnp.mean(wrong_at(1, logits, batch["label"]).astype(loss.dtype))
    return WorkerResult(loss, error, left.get("batch_stats", {}))


def with_distance(worker: Callable[..., WorkerResult]) -> Callable[..., WorkerResult]:
    """The worker, whose statistics also say how far its means lie from the running ones.

    Their average over workers then holds mean(var) + var(mean), once `subtract_distance` is done.
    """

    def measured(params: Any, batch_stats: Any, batch: Batch) -> WorkerResult:
        result = worker(params, batch_stats, batch)
        return result._replace(batch_stats=add_distance(result.batch_stats, batch_stats))

    return measured
