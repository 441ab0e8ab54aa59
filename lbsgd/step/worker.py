"""Computes the loss of one worker over its n examples, and the statistics it leaves behind."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from lbsgd.models.normalization import add_distance
from lbsgd.step.losses import cross_entropy, wrong_at
from lbsgd.step.pixels import erase, mix, partner

# Examples by key: `image`, `label`, and what was drawn for them.
Batch = Mapping[str, jax.Array]


class WorkerResult(NamedTuple):
    """What a worker knows after its n examples; averaged over workers, what an update knows.

    Attributes:
      loss: mean cross-entropy, nats.
      error: top-1 error, a fraction; of mixed examples, against their own label.
      batch_stats: the moments of its batch norms; {} of a network without.
    """

    loss: Float[Array, ""]
    error: Float[Array, ""]
    batch_stats: Any


def worker_loss(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    *,
    model: Any,
    preprocess: Callable[[UInt8[Array, "n h w c"]], Float[Array, "n h w c"]],
    label_smoothing: float,
) -> WorkerResult:
    """Computes the loss of one worker, its batch norm seeing exactly its n examples.

    Equation 5 of Goyal et al. 2017.

    Args:
      batch: image, label, and what `Mixing.draw` drew for them, each `[n, ...]`.
      preprocess: uint8 images -> input of the network.
    """
    with jax.named_scope("augment"):
        images = _augmented(batch, preprocess(batch["image"]))
    with jax.named_scope("forward"):
        # The norms leave the moments of these n examples; `train_step` moves the averages, once.
        logits, left = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
    with jax.named_scope("loss"):
        loss = jnp.mean(_losses(logits, batch, label_smoothing))
        error = jnp.mean(wrong_at(1, logits, batch["label"]).astype(loss.dtype))
    return WorkerResult(loss, error, left.get("batch_stats", {}))


def _augmented(batch: Batch, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Erases and mixes images where that was drawn for them."""
    # Erased before they are mixed, so that a partner brings its own box along.
    if "erase_box" in batch:
        images = erase(images, batch["erase_box"])
    if "mix_share" in batch:
        images = mix(images, batch["mix_share"], batch.get("mix_box"))
    return images


def _losses(
    logits: Float[Array, "n classes"], batch: Batch, label_smoothing: float
) -> Float[Array, " n"]:
    """Computes the loss of each example; of a mixed one, that of both its labels by their share."""
    labels: Int[Array, " n"] = batch["label"]
    losses = cross_entropy(logits, labels, label_smoothing)
    if "mix_share" not in batch:
        return losses
    # Of two labels, not of one-hot targets: no array [n, classes] is made beside the logits.
    share = batch["mix_share"].astype(losses.dtype)
    others = cross_entropy(logits, partner(labels), label_smoothing)
    return share * losses + (1 - share) * others


def with_distance(worker: Callable[..., WorkerResult]) -> Callable[..., WorkerResult]:
    """Wraps a worker so that its statistics also say how far its means lie from the running ones.

    Their average over workers then holds mean(var) + var(mean), once `subtract_distance` is done.
    """

    def measured(params: Any, batch_stats: Any, batch: Batch) -> WorkerResult:
        result = worker(params, batch_stats, batch)
        # From the running means: squares of the means themselves would cancel in the subtraction.
        return result._replace(batch_stats=add_distance(result.batch_stats, batch_stats))

    return measured
