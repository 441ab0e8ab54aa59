"""The metrics of updates on their way from the devices to files and terminal, and the speed."""

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from lbsgd.run.build import Run
from lbsgd.run.record.progress import Progress
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.run.record.speed import INPUT_BOUND, Speed, Stopwatch
from lbsgd.system.devices import IN_FLIGHT
from lbsgd.system.errors import DivergedError

# Logged updates over which images/s are measured: single ones come off the devices in bursts.
RATE_WINDOW = 20


class Mark(NamedTuple):
    """Where a run was: updates done, seconds of training, of them without data."""

    done: int
    seconds: float
    idle: float


class Log:
    """Takes in the metrics of updates as they come off the devices, and passes them on."""

    def __init__(
        self,
        parts: Run,
        record: Record | NoRecord,
        progress: Progress,
        alive: Callable[[], None],
        start: int,
        skipped: int,
    ) -> None:
        """The log of a run that goes on.

        Args:
          alive: called after each update that came off the devices.
          start: updates done before.
          skipped: of them, how many were not finite.
        """
        self._parts, self._record, self._progress = parts, record, progress
        self._alive, self._skipped = alive, skipped
        self._waiting: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._watch = Stopwatch()
        # To measure the speed over the newest few.
        self._marks = collections.deque([Mark(start, 0.0, 0.0)], maxlen=RATE_WINDOW)
        self._start, self._fetched = start, start
        self._idle, self._told = 0.0, False

    def fed(self, batches: Any) -> Iterator[Any]:
        """The batches; measures how long the devices stand still until they come.

        Time counts from the first batch on.
        """
        while True:
            if not batches.ready and self._waiting:
                # The devices have work until here; what is waited from now on they wait too.
                jax.block_until_ready(self._waiting[-1][1])
            before = self._watch.seconds
            batch = next(batches, None)
            if batch is None:
                return
            self._idle += self._watch.seconds - before
            if not self._waiting and self._fetched == self._start:
                self._watch, self._idle = Stopwatch(), 0.0
            yield batch

    def speed(self) -> Speed:
        """Over all updates so far."""
        return self._speed_since(Mark(self._start, 0.0, 0.0))

    def update(self, done: int, values: dict[str, jax.Array]) -> None:
        """Notes the metrics of an update, and waits until few enough are on the devices."""
        self._waiting.append((done, values))
        while len(self._waiting) > IN_FLIGHT:
            self._fetch()

    def drain(self) -> None:
        """Waits for all updates."""
        while self._waiting:
            self._fetch()

    def evaluation(self, done: int, values: dict[str, float]) -> None:
        """Writes the result of an evaluation after `done` updates."""
        self._record.write(done, values)
        top5 = values.get("val_error_top5")
        self._progress.line(
            f"epoch {self._parts.timeline.epoch(done):.2f}  update {done}  "
            f"validation loss {values['val_loss']:.4f}  error {values['val_error']:.2f}%"
            + (f"  top-5 {top5:.2f}%" if top5 is not None else "")
        )

    def paused(self) -> "_Paused":
        """Time in this context does not count as training."""
        return _Paused(self._watch)

    def _speed_since(self, mark: Mark) -> Speed:
        seen = self._parts.timeline.examples_seen
        images = seen(self._fetched) - seen(mark.done)
        return Speed.over(images, self._watch.seconds - mark.seconds, self._idle - mark.idle)

    def _fetch(self) -> None:
        done, arrays = self._waiting.popleft()
        values = {key: float(value) for key, value in jax.device_get(arrays).items()}
        self._fetched = done
        self._alive()
        if values["skipped"] > self._skipped:
            self._record.write(done, values)
            self._skip(done, values)
            return
        if done % self._parts.config.log.every_steps and done != self._parts.total_updates:
            return
        speed = self._speed_since(self._marks[0])
        values["images_per_second"] = speed.delivered
        values["data_wait_percent"] = 100.0 * speed.waited
        self._marks.append(Mark(done, self._watch.seconds, self._idle))
        self._record.write(done, values)
        if speed.waited > INPUT_BOUND and len(self._marks) == RATE_WINDOW and not self._told:
            self._told = True
            self._progress.line(str(speed))
        self._progress.show(done, self._parts.timeline.epoch(done), values)

    def _skip(self, done: int, values: dict[str, float]) -> None:
        """An update was not finite: the run ends, or goes on without it."""
        config = self._parts.config
        self._skipped = int(values["skipped"])
        what = "the loss" if not math.isfinite(values["train_loss"]) else "the gradient"
        text = (
            f"{what} of update {done} is not finite (learning rate "
            f"{values['learning_rate']:.6g}, gradient norm {values['gradient_norm']:.6g})"
        )
        if config.on_nonfinite == "stop" or self._skipped > config.max_nonfinite:
            count = (
                f"; it is number {self._skipped}, more than max_nonfinite={config.max_nonfinite}"
            )
            raise DivergedError(
                f"{text}{count if config.on_nonfinite == 'skip' else ''}; a longer warmup, a lower "
                "learning_rate.reference_learning_rate or a smaller batch_size may help (with "
                "another --workdir)"
            )
        self._progress.line(f"{text}; it is skipped, number {self._skipped}")


class _Paused:
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._watch.stop()

    def __exit__(self, *_: Any) -> None:
        self._watch.start()
