"""The loop: one run from its config to its result, read from top to bottom."""

import collections
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from lbsgd import monitor, runtime
from lbsgd.build import Run, build
from lbsgd.checkpoint import Checkpoints
from lbsgd.explain import explain, parameter_table
from lbsgd.step import EvalSums, TrainState
from lbsgd.workdir import Workdir

# Waiting for data longer than this part of the time is worth a line.
INPUT_BOUND = 0.1
# Logged updates over which images/s are measured: single ones come off the devices in bursts.
RATE_WINDOW = 20


class DivergedError(RuntimeError):
    """The training loss is not finite any more."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      updates: done in all.
      complete: whether that is all of them; a run that was stopped is not.
      final_error: median validation error (%) of the last 5 evaluations; None if there was none.
    """

    updates: int
    complete: bool
    final_error: float | None


def run(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    should_stop: Callable[[int], bool] = lambda updates: False,
) -> Outcome:
    """Trains as a resolved config says, from the newest checkpoint in `workdir` if there is one.

    Args:
      config: from `lbsgd.config.resolve`.
      workdir: the folder of the run.
      should_stop: asked with the number of updates done, after each; if true the run saves a
        checkpoint and ends.

    Raises:
      ConfigError: something the user can put right.
      DivergedError: the training loss is not finite.
    """
    parts = build(config)
    folder = Workdir(pathlib.Path(workdir))
    speaks = jax.process_index() == 0
    if speaks:
        folder.claim(parts.identity(), config.to_dict(), runtime.describe_machine())
    checkpoints = Checkpoints(folder.checkpoints, config.checkpoint.keep)
    start = checkpoints.newest or 0
    progress = monitor.open_progress(parts.total_updates, start, speaks=speaks)
    metrics = monitor.MetricsFile(folder.metrics, keep_until=start) if speaks else None
    summaries: Any = monitor.NoSummaries()
    batches: Any = None
    try:
        if start == parts.total_updates:
            progress.line(f"{folder.path} is complete: {start} updates are done")
            return _finish(parts, folder, progress, start, None)
        parts.corrupt.record(folder.corrupt)
        for line in explain(parts):
            progress.line(line)
        if speaks and config.log.tensorboard:
            summaries, note = monitor.open_summaries(folder.tensorboard)
            if note:
                progress.line(note)

        if start:
            state = checkpoints.restore(parts.abstract_state())
            progress.line(f"goes on after update {start} from {folder.checkpoints}")
        else:
            progress.line(parameter_table(parts))
            replicated = parts.placement.replicated
            state = jax.jit(parts.initial_state, out_shardings=replicated)()
        begun = time.monotonic()
        batches = parts.feed(start)  # loads the first ones meanwhile
        step = parts.compile_train_step()
        evaluate = Evaluation(parts)
        progress.line(f"compiled in {time.monotonic() - begun:.1f} s")

        log = Log(parts, metrics, summaries, progress, start)
        done = start
        for batch in log.fed(batches):
            state, values = step(state, batch)
            done += 1
            log.update(done, values)
            if done in parts.evaluate_after:
                log.drain()
                with log.paused():
                    log.evaluation(done, evaluate(done, state))
            stop = should_stop(done)
            if done in parts.save_after or stop:
                log.drain()
                with log.paused():
                    checkpoints.save(done, state)
            if stop:
                break
        log.drain()
        return _finish(parts, folder, progress, done, log.speed())
    finally:
        if batches:
            batches.close()
        checkpoints.close()
        summaries.close()
        progress.close()
        if metrics:
            metrics.close()


class Speed(NamedTuple):
    """How fast training went.

    Attributes:
      delivered: images/s.
      needed: images/s that the devices would have taken.
      waited: part of the time that they stood still for want of data.
    """

    delivered: float
    needed: float
    waited: float

    @classmethod
    def over(cls, images: int, seconds: float, idle: float) -> "Speed":
        """Of so many images in so many seconds, of which the devices stood still for some."""
        seconds = max(seconds, 1e-9)
        return cls(images / seconds, images / max(seconds - idle, 1e-9), idle / seconds)

    def __str__(self) -> str:
        text = f"{self.delivered:,.0f} images/s, waited for data {self.waited:.1%} of the time"
        if self.waited <= INPUT_BOUND:
            return text
        return (
            f"{text}; input-bound: {self.needed:,.0f} images/s needed, "
            f"{self.delivered:,.0f} delivered"
        )


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
        metrics: monitor.MetricsFile | None,
        summaries: Any,
        progress: monitor.Progress,
        start: int,
    ) -> None:
        self._parts, self._metrics, self._summaries = parts, metrics, summaries
        self._progress = progress
        self._waiting: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self._watch = monitor.Stopwatch()
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
                self._watch, self._idle = monitor.Stopwatch(), 0.0
            yield batch

    def speed(self) -> Speed:
        """Over all updates so far."""
        return self._speed_since(Mark(self._start, 0.0, 0.0))

    def update(self, done: int, values: dict[str, jax.Array]) -> None:
        """Notes the metrics of an update, and waits until few enough are on the devices."""
        self._waiting.append((done, values))
        while len(self._waiting) > runtime.IN_FLIGHT:
            self._fetch()

    def drain(self) -> None:
        """Waits for all updates."""
        while self._waiting:
            self._fetch()

    def evaluation(self, done: int, values: dict[str, float]) -> None:
        """Writes the result of an evaluation after `done` updates."""
        self._write(done, values)
        self._progress.line(
            f"epoch {self._parts.timeline.epoch(done):.2f}  update {done}  "
            f"validation loss {values['val_loss']:.4f}  error {values['val_error']:.2f}%  "
            f"top-5 {values['val_error_top5']:.2f}%"
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
        if not math.isfinite(values["train_loss"]):
            raise DivergedError(
                f"the loss of update {done - 1} is not finite (learning rate "
                f"{values['learning_rate']:.6g}); a longer warmup, a lower "
                "learning_rate.reference_learning_rate or a smaller batch_size may help"
            )
        if done % self._parts.config.log.every_steps and done != self._parts.total_updates:
            return
        speed = self._speed_since(self._marks[0])
        values["images_per_second"] = speed.delivered
        values["data_wait_percent"] = 100.0 * speed.waited
        self._marks.append(Mark(done, self._watch.seconds, self._idle))
        self._write(done, values)
        if speed.waited > INPUT_BOUND and len(self._marks) == RATE_WINDOW and not self._told:
            self._told = True
            self._progress.line(str(speed))
        self._progress.show(done, self._parts.timeline.epoch(done), values)

    def _write(self, done: int, values: dict[str, float]) -> None:
        if self._metrics:
            self._metrics.write(done, self._parts.timeline.epoch(done), values)
            self._summaries.write_scalars(done, values)


class _Paused:
    def __init__(self, watch: monitor.Stopwatch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._watch.stop()

    def __exit__(self, *_: Any) -> None:
        self._watch.start()


class Evaluation:
    """Loss and errors over every validation example exactly once."""

    def __init__(self, parts: Run) -> None:
        self._parts, self._batches = parts, parts.eval_batches()
        self._step, self._moments = parts.eval_step(), parts.moments_step()

    def __call__(self, done: int, state: TrainState) -> dict[str, float]:
        """Evaluates the state after `done` updates.

        Raises:
          RuntimeError: examples were counted twice or not at all.
        """
        stats = self._statistics(done, state)
        totals = np.zeros(len(EvalSums._fields))
        for batch in self._batches:
            totals += jax.device_get(self._step(state.params, stats, batch))
        loss, wrong, wrong_top5, examples = totals.tolist()
        self._check_count(int(examples))
        return {
            "val_loss": loss / examples,
            "val_error": 100.0 * wrong / examples,
            "val_error_top5": 100.0 * wrong_top5 / examples,
        }

    def _check_count(self, examples: int) -> None:
        """Only corrupt examples may be left out."""
        count, corrupt = len(self._parts.splits.validation), self._parts.corrupt
        most = corrupt.most * jax.process_count() if corrupt.policy == "skip" else 0
        if not count - most <= examples <= count:
            raise RuntimeError(f"evaluated {examples} of {count} examples")

    def _statistics(self, done: int, state: TrainState) -> Any:
        """The running averages, or for precise batch norm the mean over a part of the set.

        That part and its augmentation are a function of the update index.
        """
        batches = self._parts.precise_batches
        if not batches:
            return state.batch_stats
        source = self._parts.train_batches("precise_batch_norm")
        total: Any = None
        for batch in source.between(done, done + batches):
            moments = self._moments(state.params, state.batch_stats, batch)
            total = moments if total is None else jax.tree.map(jax.numpy.add, total, moments)
            jax.block_until_ready(total)
        return jax.tree.map(lambda x: x / batches, total)


def _finish(
    parts: Run,
    folder: Workdir,
    progress: monitor.Progress,
    done: int,
    speed: Speed | None,
) -> Outcome:
    """Draws the curves and sums the run up."""
    if jax.process_index():
        return Outcome(done, done == parts.total_updates, None)
    lines = monitor.read_metrics(folder.metrics)
    evaluated = list(monitor.evaluations(lines))
    complete = done == parts.total_updates
    error = monitor.final_error(lines) if evaluated else None
    title = f"{parts.config.model.name} on {parts.config.data.source}, "
    title += f"minibatch {parts.config.batch_size} = {parts.placement.workers} workers"
    monitor.draw_curves(lines, folder.curves, title)
    epochs = parts.timeline.epoch(done)
    progress.line("")
    if not complete:
        progress.line(
            f"stopped after update {done} of {parts.total_updates}; the same command goes on"
        )
    if error is not None:
        progress.line(
            f"validation error {error:.2f}% (median of the last {min(5, len(evaluated))} "
            f"evaluations; the last {evaluated[-1]['val_error']:.2f}%, "
            f"top-5 {evaluated[-1]['val_error_top5']:.2f}%)"
        )
    if speed is not None:
        progress.line(f"{done:,} updates, {epochs:.4g} epochs, {speed}")
    if parts.corrupt.names:
        progress.line(f"corrupt examples: {len(parts.corrupt.names)}, named in {folder.corrupt}")
    for name, path in (
        ("checkpoint", folder.checkpoints / str(done)),
        ("metrics", folder.metrics),
        ("picture", folder.curves),
    ):
        progress.line(f"{name:<11}{path}")
    return Outcome(done, complete, error)
