"""What a loop reports to and asks: metrics, lines, throughput, stalls, and whether to stop.

The metrics of an update come off the devices while later ones are computed.
"""

import collections
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from lbsgd.data.pipeline import Batch, Prefetch
from lbsgd.data.repeated import RepeatedBatches
from lbsgd.run.calls import Call
from lbsgd.run.plan import Plan
from lbsgd.run.record.progress import Progress
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.run.record.speed import INPUT_BOUND, Speed, Stopwatch
from lbsgd.run.target import OF_AVERAGE
from lbsgd.system.devices import IN_FLIGHT
from lbsgd.system.errors import DivergedError
from lbsgd.tasks.task import Task

# Logged updates over which images/s are measured: single ones come off the devices in bursts.
RATE_WINDOW = 20


class Mark(NamedTuple):
    """Marks where a run was: updates done, seconds of training, of them without data."""

    done: int
    seconds: float
    idle: float


class Monitor:
    """Passes on what a loop reports, and tells it when to stop.

    Attributes:
      record: what the run leaves on the disk.
      alive: is called whenever something came off the devices.
      should_stop: tells, given the updates done, whether the run is to save and end.
    """

    def __init__(
        self,
        plan: Plan,
        record: Record | NoRecord,
        progress: Progress,
        alive: Callable[[], None],
        should_stop: Callable[[int], bool],
        scheduled: Callable[[int], Mapping[str, float]],
        *,
        start: int,
        skipped: int,
    ) -> None:
        """Monitors a run from an update on.

        Args:
          scheduled: update index -> what varies with it, by the name it has among the metrics.
          start: updates done before.
          skipped: of them, how many were not finite.
        """
        self.record, self.alive, self.should_stop = record, alive, should_stop
        self._plan, self._progress, self._skipped = plan, progress, skipped
        self._scheduled = scheduled
        self._waiting: collections.deque[tuple[Call, dict[str, jax.Array]]] = collections.deque()
        self._watch = Stopwatch()
        # To measure the speed over the newest few.
        self._marks = collections.deque([Mark(start, 0.0, 0.0)], maxlen=RATE_WINDOW)
        self._start, self._fetched = start, start
        self._idle, self._told = 0.0, False

    def batches(self, feed: Prefetch | RepeatedBatches) -> Iterator[Batch]:
        """Iterates over the batches of a feed, and measures how long the devices wait for them.

        Time counts from the first batch on.
        """
        while True:
            if not feed.ready and self._waiting:
                # The devices have work until here; what is waited from now on they wait too.
                jax.block_until_ready(self._waiting[-1][1])
            before = self._watch.seconds
            batch = next(feed, None)
            if batch is None:
                return
            self._idle += self._watch.seconds - before
            if not self._waiting and self._fetched == self._start:
                self._watch, self._idle = Stopwatch(), 0.0
            yield batch

    def line(self, text: str) -> None:
        """Prints a line."""
        self._progress.line(text)

    def speed(self) -> Speed:
        """Returns the throughput over all updates so far."""
        return self._speed_since(Mark(self._start, 0.0, 0.0))

    def updates(self, call: Call, values: dict[str, jax.Array]) -> None:
        """Notes the metrics of a call, and waits until few enough are on the devices.

        Args:
          values: of its update; of several they are stacked.
        """
        self._waiting.append((call, values))
        while len(self._waiting) > IN_FLIGHT:
            self._fetch()

    def drain(self) -> None:
        """Waits for all updates."""
        while self._waiting:
            self._fetch()

    def evaluation(self, done: int, values: dict[str, float]) -> None:
        """Writes the result of an evaluation after `done` updates."""
        self.record.write(done, values)
        words = "  ".join(describe_evaluation(self._plan.task, values))
        self._progress.line(
            f"epoch {self._plan.timeline.epoch(done):.2f}  update {done}  validation {words}"
        )

    def paused(self) -> "_Paused":
        """Stops the clock of training within this context."""
        return _Paused(self._watch)

    def _speed_since(self, mark: Mark) -> Speed:
        seen = self._plan.timeline.examples_seen
        images = seen(self._fetched) - seen(mark.done)
        return Speed.over(images, self._watch.seconds - mark.seconds, self._idle - mark.idle)

    def _fetch(self) -> None:
        call, arrays = self._waiting.popleft()
        fetched = {key: np.atleast_1d(x).tolist() for key, x in jax.device_get(arrays).items()}
        self._fetched = call.done
        self.alive()
        # Of all updates of a call, for they come off the devices at once.
        speed = self._speed_since(self._marks[0])
        logged = False
        for i in range(call.updates):
            # The update that makes `done` has the index done - 1.
            done = call.first + i + 1
            values = {key: float(column[i]) for key, column in fetched.items()}
            logged |= self._write(done, values | dict(self._scheduled(done - 1)), speed)
        if not logged:
            return
        self._marks.append(Mark(call.done, self._watch.seconds, self._idle))
        if speed.waited > INPUT_BOUND and len(self._marks) == RATE_WINDOW and not self._told:
            self._told = True
            self._progress.line(str(speed))

    def _write(self, done: int, values: dict[str, float], speed: Speed) -> bool:
        """Writes the metrics of an update if they are due, and returns whether they were."""
        if values["skipped"] > self._skipped:
            self.record.write(done, values)
            self._skip(done, values)
            return False
        if done % self._plan.config.log.every_steps and done != self._plan.total_updates:
            return False
        values["images_per_second"] = speed.delivered
        values["data_wait_percent"] = 100.0 * speed.waited
        self.record.write(done, values)
        self._progress.show(done, self._plan.timeline.epoch(done), values)
        return True

    def _skip(self, done: int, values: dict[str, float]) -> None:
        """Handles an update that was not finite: the run ends, or goes on without it."""
        config = self._plan.config
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


def describe_evaluation(task: Task, values: Mapping[str, float]) -> list[str]:
    """Says each metric of an evaluation, those of averaged weights last."""
    found = []
    for ending, before in (("", ""), (OF_AVERAGE, "averaged weights: ")):
        for name, metric in task.validation.items():
            value = values.get(f"val_{name}{ending}")
            if value is not None:
                found.append(f"{before}{metric.words or name} {metric.format(value)}")
                before = ""
    return found


class _Paused:
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._watch.stop()

    def __exit__(self, *_: object) -> None:
        self._watch.start()
