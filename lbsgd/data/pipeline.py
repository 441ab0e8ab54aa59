"""From an update index to a batch on the devices, without state.

The batch of update t is a function of t: `timeline` gives the positions of its examples, `order`
the examples, `placement` the slots that hold them. Every process loads what its own devices hold.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from lbsgd.data.order import Order
from lbsgd.data.sources import Source
from lbsgd.timeline import Timeline
from lbsgd.workers import Placement

Augment = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Arrays = dict[str, np.ndarray]


def gather(source: Source, examples: np.ndarray) -> Arrays:
    """The examples `[N]` as image `[N, h, w, c]` and label int32 `[N]`."""
    rows = [source[int(i)] for i in examples]
    images = np.stack([row.image for row in rows])
    return {"image": images, "label": np.array([row.label for row in rows], np.int32)}


def to_devices(local: Arrays, placement: Placement) -> dict[str, jax.Array]:
    """Global arrays `[steps, D * L, ...]` from this process's part, `[steps, S, ...]`."""

    def put(array: np.ndarray) -> jax.Array:
        shape = (array.shape[0], placement.devices * placement.lanes, *array.shape[2:])
        return jax.make_array_from_process_local_data(placement.batch_sharding, array, shape)

    return {key: put(array) for key, array in local.items()}


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """The minibatches of a run, by update index.

    Attributes:
      augment: (images, epochs, examples) -> images.
      threads: that load batches ahead.
    """

    source: Source
    order: Order
    timeline: Timeline
    placement: Placement
    augment: Augment
    threads: int = 1

    def examples(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example of each row of this process's slots, each `[A, S, n]`."""
        rows = self.placement.rows_of_slot()[:, self.placement.local_slots()]
        return self.order(self.timeline.examples_seen(update) + rows)

    def load(self, update: int) -> Arrays:
        """This process's part of the batch: image `[A, S, n, h, w, c]`, label `[A, S, n]`."""
        epochs, examples = self.examples(update)
        batch = gather(self.source, examples.ravel())
        batch["image"] = self.augment(batch["image"], epochs.ravel(), examples.ravel())
        return {key: x.reshape(examples.shape + x.shape[1:]) for key, x in batch.items()}

    def between(self, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """The batches of updates start..stop-1 on the devices, loaded ahead."""
        ahead = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.threads + 1)
        loaded = grain.MapDataset.range(start, stop).map(self.load).to_iter_dataset(ahead)
        waiting: dict[str, jax.Array] | None = None
        for local in loaded:
            # One batch is already being copied to the devices while another is used.
            batch = to_devices(local, self.placement)
            if waiting is not None:
                yield waiting
            waiting = batch
        if waiting is not None:
            yield waiting


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Every example of a source exactly once, in batches of one shape.

    Attributes:
      batch_size: about how many examples a batch has; the least multiple of the slots at least
        as large is taken.
    """

    source: Source
    placement: Placement
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        """Batches of image `[1, D * L, e, h, w, c]`, label and mask `[1, D * L, e]`."""
        slots = self.placement.devices * self.placement.lanes
        each = math.ceil(min(self.batch_size, len(self.source)) / slots)
        local = self.placement.local_slots()
        for start in range(0, len(self.source), slots * each):
            index = start + np.arange(slots * each).reshape(1, slots, each)[:, local]
            mask = index < len(self.source)
            batch = gather(self.source, np.where(mask, index, 0).ravel())
            batch = {key: x.reshape(index.shape + x.shape[1:]) for key, x in batch.items()}
            yield to_devices({**batch, "mask": mask}, self.placement)
