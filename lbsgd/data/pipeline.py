"""From an update index to a batch on the devices, without state.

The batch of update t is a function of t: `timeline` gives the positions of its examples, `order`
the examples, `placement` the slots that hold them. Every process loads what its own devices hold.

Threads share the rows of a batch among them: decoding releases Python's lock, so they keep all
cores busy, write straight into the batch, and need no copies between processes.
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
import jax.numpy as jnp
import numpy as np

from lbsgd.data.corrupt import Corrupt
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.mixing import Mixing
from lbsgd.data.order import Order
from lbsgd.data.source import Source
from lbsgd.data.views import View
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError
from lbsgd.system.limits import num_cores
from lbsgd.workers.placement import Placement

Augment = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
Arrays = dict[str, np.ndarray]
Batch = dict[str, jax.Array]

# Batches that wait on the devices, ready for the step.
AHEAD = 2
# Rows that a thread loads at a time: few enough to share a small batch among all threads.
MOST_ROWS = 64


class Job(NamedTuple):
    """A batch to be loaded: its arrays, and the calls that together fill them, in any order."""

    arrays: Arrays
    parts: Sequence[Callable[[], None]]


class Rows(NamedTuple):
    """Rows of a batch: what they are to hold, and the arrays for it, each `[N, ...]`.

    Attributes:
      real: which hold an example at all.
    """

    epochs: np.ndarray
    examples: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    real: np.ndarray

    def part(self, rows: slice) -> "Rows":
        """Some of the rows; the arrays are views."""
        return Rows(*(x[rows] for x in self))


@dataclasses.dataclass(frozen=True)
class Loader:
    """Puts examples into arrays.

    Attributes:
      view: which part of each image is seen.
      augment: (images, epochs, examples) of one shape, in place; one after the other.
      threads: that share the rows of a batch; 0 for one a core.
    """

    source: Source
    view: View
    augment: tuple[Augment, ...] = ()
    corrupt: Corrupt = dataclasses.field(default_factory=Corrupt)
    threads: int = 0

    @property
    def num_threads(self) -> int:
        """How many threads load."""
        return self.threads or num_cores()

    def job(self, epochs: np.ndarray, examples: np.ndarray, mask: np.ndarray | None = None) -> Job:
        """Image uint8 `[..., h, w, c]` and label int32 `[...]` of the examples `[...]`.

        Args:
          mask: which are real. Given one, a corrupt example is masked (and must not count); without
            one the next example in the set that can be read takes its place, so that the batch is
            still a function of its index.
        """
        count = examples.size
        arrays: Arrays = {
            "image": np.empty((*examples.shape, *self.view.shape), np.uint8),
            "label": np.empty(examples.shape, np.int32),
        }
        if mask is not None:
            arrays["mask"] = mask
        rows = Rows(
            epochs.ravel(),
            examples.ravel(),
            arrays["image"].reshape(count, *self.view.shape),
            arrays["label"].reshape(count),
            np.ones(count, bool) if mask is None else mask.reshape(count),
        )
        size = max(1, min(MOST_ROWS, count // (4 * self.num_threads)))
        parts = [rows.part(slice(i, i + size)) for i in range(0, count, size)]
        return Job(arrays, [functools.partial(self._fill, p, mask is None) for p in parts])

    def _fill(self, rows: Rows, replace: bool) -> None:
        draws = self.view.draw(rows.epochs, rows.examples)
        seen = rows.examples.copy()
        rows.images[~rows.real], rows.labels[~rows.real] = 0, 0
        for i in np.flatnonzero(rows.real).tolist():
            out = rows.images[i]
            try:
                rows.labels[i] = self._see(int(seen[i]), draws[i], out)
            except CorruptError as error:
                self.corrupt.note(self.source.name(int(seen[i])), error)
                if replace:
                    seen[i], rows.labels[i] = self._replace(rows.epochs[i], int(seen[i]), out)
                else:
                    out[:], rows.labels[i], rows.real[i] = 0, 0, False
        for augment in self.augment:
            augment(rows.images, rows.epochs, seen)

    def _see(self, example: int, draw: np.ndarray, out: np.ndarray) -> int:
        image, label = self.source[example]
        try:
            self.view(image, draw, out)
        except ConfigError as error:
            raise ConfigError(f"{self.source.name(example)}: {error}") from error
        return label

    def _replace(self, epoch: np.ndarray, corrupt: int, out: np.ndarray) -> tuple[int, int]:
        """Puts the next example that can be read into `out`: which it is, and its label."""
        count = len(self.source)
        for step in range(1, count):
            example = (corrupt + step) % count
            draw = self.view.draw(epoch[None], np.array([example]))[0]
            try:
                return example, self._see(example, draw, out)
            except CorruptError as error:
                self.corrupt.note(self.source.name(example), error)
        raise ConfigError(f"no example can be read: all {count} are corrupt")


def load(job: Job) -> Arrays:
    """Fills the arrays of a job, in this thread."""
    for part in job.parts:
        part()
    return job.arrays


def to_devices(local: Arrays, placement: Placement) -> Batch:
    """Global arrays `[steps, D * L, ...]` from this process's part, `[steps, S, ...]`."""

    def put(array: np.ndarray) -> jax.Array:
        shape = (array.shape[0], placement.devices * placement.lanes, *array.shape[2:])
        return jax.make_array_from_process_local_data(placement.batch_sharding, array, shape)

    return {key: put(array) for key, array in local.items()}


class Prefetch:
    """An iterator over batches that are loaded ahead by threads, and put on the devices.

    Takes pairs of a job and the placement that its arrays are for.

    At most `AHEAD` wait on the devices, and the two after them are being loaded. An error in a
    thread comes out of the next `next`, whichever batch it belongs to.
    """

    def __init__(self, jobs: Iterable[tuple[Job, Placement]], threads: int) -> None:
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
        """Whether the next batch is there."""
        return not self._loaded.empty()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._loaded.get()
        if self._error or batch is None:
            self._loaded.put(None)  # for whoever asks again
            self.close()
            raise self._error or StopIteration
        self._room.release()
        return batch

    def close(self) -> None:
        """Ends the loading; what a thread is at, it finishes."""
        self._stopped.set()
        self._room.release()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _produce(self) -> None:
        waiting: deque[tuple[Job, Placement, list[Future[None]]]] = deque()
        try:
            for job, placement in self._jobs:
                parts = [self._pool.submit(part) for part in job.parts]
                waiting.append((job, placement, parts))
                # The threads go on with a second batch where the first runs out of rows for them.
                if len(waiting) > 1 and not self._hand_over(*waiting.popleft()):
                    return
            while waiting and self._hand_over(*waiting.popleft()):
                pass
        except BaseException as error:
            self._error = error
        finally:
            self._loaded.put(None)

    def _hand_over(self, job: Job, placement: Placement, parts: list[Future[None]]) -> bool:
        """Puts a batch on the devices when it is loaded and there is room; False once stopped."""
        for part in parts:
            part.result()
        self._room.acquire()
        if not self._stopped.is_set():
            self._loaded.put(to_devices(job.arrays, placement))
        return not self._stopped.is_set()


class Repeated:
    """The same batches again and again, in place of `Prefetch` where nothing is to be loaded."""

    ready = True

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Nothing is open."""


def random_batch(shapes: dict[str, jax.ShapeDtypeStruct], classes: int, seed: int) -> Batch:
    """A batch of random images and labels, made on the devices that are to hold it.

    What else a batch has is 0.
    """

    def make() -> Batch:
        keys = dict(zip(shapes, jax.random.split(jax.random.key(seed), len(shapes))))
        most = {"image": 256, "label": classes}
        return {
            key: jax.random.randint(keys[key], shape.shape, 0, most.get(key, 1), jnp.int32).astype(
                shape.dtype
            )
            for key, shape in shapes.items()
        }

    return jax.jit(make, out_shardings={k: s.sharding for k, s in shapes.items()})()


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """The minibatches of a run, by update index.

    Attributes:
      placements: by batch size.
      mixing: draws what the devices mix and erase.
    """

    loader: Loader
    order: Order
    timeline: Timeline
    placements: Mapping[int, Placement]
    mixing: Mixing

    def placement(self, update: int) -> Placement:
        """Where the workers of an update are."""
        return self.placements[self.timeline.batch_size(update)]

    def examples(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and example of each row of this process's slots, each `[A, S, n]`."""
        placement = self.placement(update)
        rows = placement.rows_of_slot()[:, placement.local_slots()]
        return self.order(self.timeline.examples_seen(update) + rows)

    def job(self, update: int) -> Job:
        """This process's part of the batch: image `[A, S, n, h, w, c]`, label `[A, S, n]`, ..."""
        epochs, examples = self.examples(update)
        job = self.loader.job(epochs, examples)
        drawn = self.mixing.draw(epochs.ravel(), examples.ravel())
        job.arrays.update({k: x.reshape(examples.shape + x.shape[1:]) for k, x in drawn.items()})
        return job

    def between(self, start: int, stop: int) -> Prefetch:
        """The batches of updates start..stop-1 on the devices, loaded ahead."""
        jobs = ((self.job(t), self.placement(t)) for t in range(start, stop))
        return Prefetch(jobs, self.loader.num_threads)


@dataclasses.dataclass(frozen=True)
class EvalBatches:
    """Every example of a source exactly once, in batches of one shape.

    Attributes:
      batch_size: about how many examples a batch has; the least multiple of the slots at least
        as large is taken.
    """

    loader: Loader
    placement: Placement
    batch_size: int

    def jobs(self) -> Iterator[Job]:
        """This process's part: image `[1, S, e, h, w, c]`, label and mask `[1, S, e]`."""
        count = len(self.loader.source)
        slots = self.placement.devices * self.placement.lanes
        each = math.ceil(min(self.batch_size, count) / slots)
        local = self.placement.local_slots()
        for start in range(0, count, slots * each):
            index = start + np.arange(slots * each).reshape(1, slots, each)[:, local]
            yield self.loader.job(np.zeros_like(index), index, index < count)

    def __iter__(self) -> Prefetch:
        """Batches of image `[1, D * L, e, h, w, c]`, label and mask `[1, D * L, e]`."""
        jobs = ((job, self.placement) for job in self.jobs())
        return Prefetch(jobs, self.loader.num_threads)
