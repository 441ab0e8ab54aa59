"""The input pipeline: from an update index to a batch on the devices, without state.

The batch of update t is a function of t: `timeline` gives the positions of its examples, `order`
the examples, `placement` the slots that hold them. So there is no iterator to save in a checkpoint
or to restore on resume. Every process loads the examples of its own devices.

Threads load the rows of a batch. Threads suffice because decoding releases Python's lock; they
write straight into the batch, which processes could do only by copying.
"""

import dataclasses
import functools
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.image_sizes import ImageSizes
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.images.resize import shrink
from lbsgd.data.mixing import Mixing
from lbsgd.data.order import Order, ShardOrder
from lbsgd.data.source import Source
from lbsgd.data.views import View
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError
from lbsgd.system.limits import num_cores
from lbsgd.workers.placement import Placement

Augment = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
Arrays = dict[str, np.ndarray]
Batch = dict[str, jax.Array]
# Labels [N] -> arrays [N, ...] of a batch, by name.
Targets = Callable[[np.ndarray], Mapping[str, np.ndarray]]

# Batches that are prefetched: they wait on the devices, ready for the step.
AHEAD = 2
# Most rows of one task of a thread.
MOST_ROWS = 64


class LoadJob(NamedTuple):
    """A batch to be loaded.

    Attributes:
      arrays: of the batch, not filled yet.
      tasks: calls that together fill the arrays, in any order and in any thread.
      targets: as in `Loader`.
      stacked: whether the arrays are those of several updates, with a first axis for them.
    """

    arrays: Arrays
    tasks: Sequence[Callable[[], None]]
    targets: Targets | None = None
    stacked: bool = False

    def filled(self) -> Arrays:
        """Gives the arrays of the batch, once all tasks are done."""
        if self.targets is None:
            return self.arrays
        labels = self.arrays["label"]
        made = {
            k: x.reshape(labels.shape + x.shape[1:])
            for k, x in self.targets(labels.ravel()).items()
        }
        return {**{k: x for k, x in self.arrays.items() if k != "label"}, **made}


class Rows(NamedTuple):
    """Rows of a batch: which examples they hold, and the arrays to fill, each `[N, ...]`.

    Attributes:
      real: which rows hold an example; the others are padding.
    """

    epochs: np.ndarray
    examples: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    real: np.ndarray

    def part(self, rows: slice) -> "Rows":
        """Selects some of the rows; the arrays are views."""
        return Rows(*(x[rows] for x in self))


@dataclasses.dataclass(frozen=True)
class Loader:
    """Loads examples into arrays.

    Attributes:
      view: crops and resizes each image.
      augment: functions of (images, epochs, examples) that change the images in place, one after
        the other.
      corrupt: what to do with examples that cannot be read.
      threads: how many threads load; 0 for one per core.
      targets: what a task makes of the labels of a batch; None for the labels as they are.
    """

    source: Source
    view: View
    augment: tuple[Augment, ...] = ()
    corrupt: CorruptExamples = dataclasses.field(default_factory=CorruptExamples)
    threads: int = 0
    targets: Targets | None = None

    @property
    def num_threads(self) -> int:
        """How many threads load."""
        return self.threads or num_cores()

    def job(
        self,
        epochs: np.ndarray,
        examples: np.ndarray,
        mask: np.ndarray | None = None,
        size: tuple[int, int] | None = None,
    ) -> LoadJob:
        """Prepares to load examples `[...]`: image uint8 `[..., h, w, c]`, label int32 `[...]`.

        Args:
          mask: which rows are real, for evaluation; a corrupt example is masked, so that it does
            not count. Without a mask, for training, the next example of the data set that can be
            read takes its place, so that the batch is still a function of its index.
          size: `(h, w)` to which images are shrunk after all else; by default they are not.
        """
        count = examples.size
        shape = (*(size or self.view.shape[:2]), self.view.shape[2])
        arrays: Arrays = {
            "image": np.empty((*examples.shape, *shape), np.uint8),
            "label": np.empty(examples.shape, np.int32),
        }
        if mask is not None:
            arrays["mask"] = mask
        rows = Rows(
            epochs.ravel(),
            examples.ravel(),
            arrays["image"].reshape(count, *shape),
            arrays["label"].reshape(count),
            np.ones(count, bool) if mask is None else mask.reshape(count),
        )
        # Four tasks per thread or more, so that all threads share the rows of a small batch.
        each = max(1, min(MOST_ROWS, count // (4 * self.num_threads)))
        parts = [rows.part(slice(i, i + each)) for i in range(0, count, each)]
        tasks = [functools.partial(self._fill, p, mask is None) for p in parts]
        return LoadJob(arrays, tasks, self.targets)

    def _fill(self, rows: Rows, replace: bool) -> None:
        """Loads rows, and shrinks their images where the batch has smaller ones."""
        if rows.images.shape[1:] == self.view.shape:
            return self._load(rows, replace)
        whole = np.empty((len(rows.images), *self.view.shape), np.uint8)
        self._load(rows._replace(images=whole), replace)
        for image, out in zip(whole, rows.images):
            shrink(image, out)

    def _load(self, rows: Rows, replace: bool) -> None:
        """Loads rows: each example by itself, then the augmentation of all of them."""
        draws = self.view.draw(rows.epochs, rows.examples)
        loaded = rows.examples.copy()
        rows.images[~rows.real], rows.labels[~rows.real] = 0, 0
        for i in np.flatnonzero(rows.real).tolist():
            out = rows.images[i]
            try:
                rows.labels[i] = self._load_example(int(loaded[i]), draws[i], out)
            except CorruptError as error:
                self.corrupt.note(self.source.name(int(loaded[i])), error)
                if replace:
                    loaded[i], rows.labels[i] = self._replace(rows.epochs[i], int(loaded[i]), out)
                else:
                    out[:], rows.labels[i], rows.real[i] = 0, 0, False
        # Keyed by the example in the row, which may be a replacement.
        for augment in self.augment:
            augment(rows.images, rows.epochs, loaded)

    def _load_example(self, example: int, draw: np.ndarray, out: np.ndarray) -> int:
        """Loads the view of an example into `out` and returns its label."""
        image, label = self.source[example]
        try:
            self.view(image, draw, out)
        except ConfigError as error:
            raise ConfigError(f"{self.source.name(example)}: {error}") from error
        return label

    def _replace(self, epoch: np.ndarray, corrupt: int, out: np.ndarray) -> tuple[int, int]:
        """Loads the next example that can be read into `out`; returns its index and label."""
        count = len(self.source)
        for step in range(1, count):
            example = (corrupt + step) % count
            draw = self.view.draw(epoch[None], np.array([example]))[0]
            try:
                return example, self._load_example(example, draw, out)
            except CorruptError as error:
                self.corrupt.note(self.source.name(example), error)
        raise ConfigError(f"no example can be read: all {count} are corrupt")


def load_job(job: LoadJob) -> Arrays:
    """Loads a batch in this thread and returns its arrays."""
    for task in job.tasks:
        task()
    return job.filled()


def to_devices(local: Arrays, placement: Placement, *, stacked: bool = False) -> Batch:
    """Puts a batch on the devices: `[steps, D * L, ...]` from this process's `[steps, S, ...]`.

    Args:
      stacked: whether there is an axis of updates before these.
    """
    at = 2 if stacked else 1  # the axis of slots
    sharding = placement.stacked_sharding if stacked else placement.batch_sharding

    def put(array: np.ndarray) -> jax.Array:
        shape = (*array.shape[:at], placement.devices * placement.lanes, *array.shape[at + 1 :])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return {key: put(array) for key, array in local.items()}


class Prefetch:
    """Iterates over batches that threads load ahead (prefetch) and put on the devices.

    At most `AHEAD` batches wait on the devices while the two after them are loaded. An error in a
    thread is raised by the following `next`, whichever batch it belongs to.

    Args:
      jobs: the batches, each with the placement that its arrays are for.
      threads: how many threads load.
    """

    def __init__(self, jobs: Iterable[tuple[LoadJob, Placement]], threads: int) -> None:
        self._jobs = iter(jobs)
        self._loaded: queue.Queue[Batch | None] = queue.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(threads, "lbsgd-load")
        self._producer = threading.Thread(target=self._produce, name="lbsgd-batches", daemon=True)
        self._producer.start()

    @property
    def ready(self) -> bool:
        """Whether the next batch is on the devices."""
        return not self._loaded.empty()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._loaded.get()
        if self._error or batch is None:
            self._loaded.put(None)  # so that another `next` does not wait forever
            self.close()
            raise self._error or StopIteration
        self._room.release()
        return batch

    def close(self) -> None:
        """Stops loading; threads finish only their current task."""
        self._stopped.set()
        self._room.release()  # the producer may be waiting for room
        # Not waited for: a thread may be stuck in a file of a network disk that is gone.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _produce(self) -> None:
        waiting: deque[tuple[LoadJob, Placement, list[Future[None]]]] = deque()
        try:
            for job, placement in self._jobs:
                loading = [self._pool.submit(task) for task in job.tasks]
                waiting.append((job, placement, loading))
                # Two batches are in the pool at a time, so that threads that find no more rows of
                # the first one start on the second.
                if len(waiting) > 1 and not self._hand_over(*waiting.popleft()):
                    return
            while waiting and self._hand_over(*waiting.popleft()):
                pass
        except BaseException as error:
            self._error = error
        finally:
            self._loaded.put(None)

    def _hand_over(self, job: LoadJob, placement: Placement, loading: list[Future[None]]) -> bool:
        """Waits for a batch and for room, then puts it on the devices; returns False if stopped."""
        for task in loading:
            task.result()
        self._room.acquire()
        if not self._stopped.is_set():
            self._loaded.put(to_devices(job.filled(), placement, stacked=job.stacked))
        return not self._stopped.is_set()


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """The minibatches of a run, by update index.

    Attributes:
      placements: where the workers are, by batch size.
      mixing: draws the numbers by which the devices mix and erase images.
      image_sizes: of the images, by update; None where they are whole.
    """

    loader: Loader
    order: Order | ShardOrder
    timeline: Timeline
    placements: Mapping[int, Placement]
    mixing: Mixing
    image_sizes: ImageSizes | None = None

    def placement(self, update: int) -> Placement:
        """Returns where the workers are placed at an update index."""
        return self.placements[self.timeline.batch_size(update)]

    def examples(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns epoch and example of each row of this process's slots at an update index.

        Returns:
          two arrays `[A, S, n]`.
        """
        placement = self.placement(update)
        rows = placement.rows_of_slot()[:, placement.local_slots()]
        return self.order(self.timeline.examples_seen(update) + rows)

    def job(self, update: int, stacked: int = 0) -> LoadJob:
        """Prepares this process's part of the minibatch at an update index.

        Its arrays are image `[A, S, n, h, w, c]`, label `[A, S, n]`, ...

        Args:
          stacked: how many minibatches from there on are stacked: `[U, A, S, n, ...]`; 0 for one
            alone.
        """
        epochs, examples = self.examples(update)
        if stacked:
            rows = (self.examples(t) for t in range(update, update + stacked))
            epochs, examples = map(np.stack, zip(*rows))
        size = self.image_sizes(update) if self.image_sizes else None
        job = self.loader.job(epochs, examples, size=size)
        mixing = self.mixing.of_size(size) if size else self.mixing
        drawn = mixing.draw(epochs.ravel(), examples.ravel())
        job.arrays.update({k: x.reshape(examples.shape + x.shape[1:]) for k, x in drawn.items()})
        return job._replace(stacked=bool(stacked))

    def between(self, start: int, stop: int) -> Prefetch:
        """Prefetches the batches of the update indices start..stop-1."""
        return self.of_calls((t, 1) for t in range(start, stop))

    def of_calls(self, calls: Iterable[tuple[int, int]]) -> Prefetch:
        """Prefetches the batches of calls: the index of the first update, and how many it has.

        Those of several updates are stacked.
        """
        jobs = ((self.job(t, n if n > 1 else 0), self.placement(t)) for t, n in calls)
        return Prefetch(jobs, self.loader.num_threads)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Batches of one shape that hold every example of a source exactly once, for evaluation.

    Attributes:
      batch_size: examples per batch; rounded up to a multiple of the number of slots.
    """

    loader: Loader
    placement: Placement
    batch_size: int

    def jobs(self) -> Iterator[LoadJob]:
        """Prepares this process's part: image `[1, S, e, h, w, c]`, label and mask `[1, S, e]`."""
        count = len(self.loader.source)
        slots = self.placement.devices * self.placement.lanes
        each = math.ceil(min(self.batch_size, count) / slots)
        local = self.placement.local_slots()
        for start in range(0, count, slots * each):
            index = start + np.arange(slots * each).reshape(1, slots, each)[:, local]
            yield self.loader.job(np.zeros_like(index), index, index < count)

    def to_json(self) -> dict[str, int]:
        """Says what decides how sums are rounded, for an evaluation that is to be the same."""
        p = self.placement
        return {"devices": p.devices, "lanes": p.lanes, "batch_size": self.batch_size}

    def __iter__(self) -> Prefetch:
        """Prefetches batches of image `[1, D * L, e, h, w, c]`, label and mask `[1, D * L, e]`."""
        jobs = ((job, self.placement) for job in self.jobs())
        return Prefetch(jobs, self.loader.num_threads)
