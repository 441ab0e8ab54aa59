"""Mixes each minibatch with the one that the update before trained on: running mixup.

    x_t = share * x + (1 - share) * x_(t-1),    and the targets likewise

(Osawa et al. 2020). x_(t-1) is mixed itself, so that older minibatches fade out. Row i
of worker j is mixed with row i of worker j, which is in the same slot, so that devices exchange
nothing. What has nothing before it stays as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from lbsgd.step.pixels import blend
from lbsgd.step.worker import Batch, erased
from lbsgd.workers.placement import Placement


class Mixed(NamedTuple):
    """Holds a minibatch as an update trained on it.

    On the devices it lies by slot, `[A, D * L, n, ...]`, as batches do; what is stored of a run is
    by worker, `[k, n, ...]`, whatever the placement.

    Attributes:
      images: as the network is given them, `[..., n, h, w, c]`.
      targets: distributions over classes, `[..., n, classes]`; 0 in rows that nothing is in.
    """

    images: Any
    targets: Any


def by_slot(mixed: Any, placement: Placement) -> Any:
    """Lays out arrays by worker, `[k, n, ...]`, in the slots of a placement, `[A, D * L, n, ...]`.

    Idle slots hold copies of workers, as those of a batch do.
    """
    return jax.tree.map(lambda x: x[placement.worker_of_slot()], mixed)


def by_worker(mixed: Any, placement: Placement) -> Any:
    """Takes arrays by worker, `[k, n, ...]`, out of the slots of a placement."""

    def of_workers(x: Any) -> Any:
        return x.reshape((placement.slots, *x.shape[2:]))[: placement.workers]

    return jax.tree.map(of_workers, mixed)


def running_mixup(
    before: Mixed,
    batch: Batch,
    *,
    preprocess: Callable[[UInt8[Array, "n h w c"]], Float[Array, "n h w c"]],
    distributions: Callable[[Batch], Float[Array, "n classes"]],
) -> tuple[Batch, Mixed]:
    """Mixes the minibatch of an update with that of the update before.

    Args:
      before: by slot; zeros before the first update.
      batch: by slot, with the `running_share` of `Mixing.draw`.
      preprocess: uint8 images -> input of the network.
      distributions: of the targets of a worker's rows; see `lbsgd.tasks.Task`.

    Returns:
      the batch, with `mixed_image` for the network and `mixed_target` for the loss; and these two.
    """

    def of_worker(before: Mixed, rows: Batch) -> Mixed:
        images = erased(rows, preprocess(rows["image"]))
        targets = distributions(rows).astype(images.dtype)
        # By what is there, and not by the update index: the first update may have been skipped.
        there = jnp.any(before.targets > 0, axis=-1)
        share = jnp.where(there, rows["running_share"].astype(images.dtype), 1)
        return Mixed(blend(share, images, before.images), blend(share, targets, before.targets))

    # Before the loop over accumulation steps, and not in it: each number is mixed by itself, where
    # it lies, and the loop needs no second output.
    with jax.named_scope("augment"):
        mixed = jax.vmap(jax.vmap(of_worker))(before, batch)
    return {**batch, "mixed_image": mixed.images, "mixed_target": mixed.targets}, mixed
