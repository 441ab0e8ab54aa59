"""Keeps what a run leaves as it trains: metrics, in their file and in sinks, and checkpoints.

Only process 0 keeps a record; the others have `NoRecord`.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.run.plan import Plan
from lbsgd.run.record.metrics import MetricsFile, best_first, evaluations, read_metrics
from lbsgd.run.record.sinks.opening import Sink, Sinks
from lbsgd.run.workdir import Workdir
from lbsgd.step.train_step import TrainState
from lbsgd.system.errors import ConfigError

Values = dict[str, float]


class Record:
    """Keeps the record of a run in its workdir.

    The metrics up to an update are on the disk before its checkpoint is, and a run that resumes
    from a checkpoint drops the later ones; so each update stands in the metrics once.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Workdir,
        say: Callable[[str], None],
        on_metrics: Sink | None = None,
    ) -> None:
        """Opens the checkpoints; `begin` opens the metrics, `open_sinks` where else they go.

        Args:
          say: takes a line.
          on_metrics: gets the metrics besides.
        """
        config = plan.config.checkpoint
        self._plan, self._folder, self._say = plan, folder, say
        self._checkpoints = Checkpoints(
            folder.checkpoints,
            config.keep,
            plan.identity(),
            interface=plan.interface.to_json(),
            on_error=config.on_error,
            say=say,
        )
        self._metrics: MetricsFile | None = None
        self._lists: MetricsFile | None = None
        self._sinks = Sinks(plan.config, folder.path, say, on_metrics)
        self._saved_at = time.monotonic()
        self._best: float | None = None

    def restore(self, like: TrainState) -> tuple[int, TrainState] | None:
        """Restores update index and state of the newest good checkpoint (`Checkpoints.restore`)."""
        return self._checkpoints.restore(like)

    def begin(self, start: int) -> None:
        """Opens the metrics of a run that resumes after `start` updates."""
        self._metrics = MetricsFile(self._folder.metrics, keep_until=start)
        if any(self._plan.measurements) or self._folder.diagnostics.is_file():
            self._lists = MetricsFile(self._folder.diagnostics, keep_until=start, lists=True)
        if self._plan.config.checkpoint.keep_best:
            self._find_best()
        self._saved_at = time.monotonic()

    def _find_best(self) -> None:
        """Keeps the checkpoint of the best evaluation before, of those that are there."""
        best = best_first(self.kept, self._headline, self._plan.task.best.rises)
        update = self._checkpoints.keep_best_of(list(best))
        self._best = None if update is None else best[update]

    @property
    def _headline(self) -> str:
        return f"val_{self._plan.task.headline}"

    def open_sinks(self, start: int) -> None:
        """Opens the sinks of a run that goes on after `start` updates."""
        self._sinks.open(start)

    def holds_evaluation(self, update: int) -> bool:
        """Tells whether the state after `update` updates was evaluated."""
        lines = evaluations(read_metrics(self._folder.metrics))
        return any(line["step"] == update for line in lines)

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Returns the lines of the metrics that were there before, and still count."""
        return self._metrics.kept if self._metrics else []

    def holds(self, update: int, name: str) -> bool:
        """Tells whether diagnostic `name` at an update index was written before, and counts."""
        kept = self._lists.kept if self._lists else []
        return any(line["step"] == update and name in line for line in kept)

    def write_lists(self, done: int, values: Mapping[str, Any]) -> None:
        """Writes diagnostics after `done` updates: lists, or numbers by name."""
        assert self._lists
        self._lists.write(done, self._plan.timeline.epoch(done), values)

    def write(self, done: int, values: Values) -> None:
        """Writes the metrics after `done` updates."""
        assert self._metrics
        epoch = self._plan.timeline.epoch(done)
        self._metrics.write(done, epoch, values)
        self._sinks(done, {"epoch": epoch, **values})

    def due(self, done: int) -> bool:
        """Tells whether the state after `done` updates is to be saved."""
        # By its clock process 0 alone knows when, and would wait for the others' parts.
        minutes = 0 if self._plan.is_spread else self._plan.config.checkpoint.every_minutes
        late = minutes and time.monotonic() - self._saved_at > 60 * minutes
        return done in self._plan.save_after or bool(late)

    def save(self, done: int, state: TrainState, last: bool, best: bool = False) -> None:
        """Starts to save; the state may be changed when this returns.

        Args:
          last: no training follows; should this fail, `finish` says so.
          best: whether it is kept until there is a better one.

        Raises:
          ConfigError: a checkpoint could not be written, and `checkpoint.on_error` is "stop".
        """
        self._checkpoints.check()
        self._saved_at = time.monotonic()
        problem = self._flush()
        if not problem:
            self._checkpoints.save(done, state, last=last, best=best)
        elif last:
            return
        elif self._plan.config.checkpoint.on_error == "stop":
            raise ConfigError(f"{problem}, so there is no checkpoint of update {done}")
        else:
            self._say(f"{problem}, so there is no checkpoint of update {done}; training goes on")

    def is_best(self, values: Mapping[str, float]) -> bool:
        """Tells whether an evaluation is the best so far, and the best are to be kept.

        Args:
          values: that it found.
        """
        value = values[self._headline]
        if not self._plan.config.checkpoint.keep_best or not math.isfinite(value):
            return False
        rises, best = self._plan.task.best.rises, self._best
        # Of equals the later.
        found = best is None or (value >= best if rises else value <= best)
        if found:
            self._best = value
        return found

    def _flush(self) -> str:
        """Brings the metrics to the disk: "", or why that cannot be.

        Raises:
          ConfigError: the workdir is another process's by now.
        """
        self._folder.check_held()
        files = (file for file in (self._metrics, self._lists) if file)
        return next(filter(None, (file.flush() for file in files)), "")

    def finish(self, done: int, state: TrainState) -> None:
        """Saves the last state, and waits until it is on the disk.

        Raises:
          ConfigError: it cannot be brought there.
        """
        self._checkpoints.check()
        problem = self._flush()
        if problem:
            raise ConfigError(
                f"{problem}, so there is no checkpoint of update {done}; {self.newest()}; once "
                f"{self._folder.path} can be written again, the same command resumes from there"
            )
        self._checkpoints.save(done, state, last=True)
        self._checkpoints.check(wait=True)

    def newest(self) -> str:
        """Says which checkpoint is the newest good one, once all are on the disk."""
        self._checkpoints.wait()
        newest = self._checkpoints.newest
        if newest is None:
            return "there is no checkpoint"
        return f"the newest good checkpoint is {self._folder.checkpoints / str(newest)}"

    def summary(self) -> str:
        """Says what the checkpoints cost."""
        return self._checkpoints.summary()

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpoints.close()
        self._sinks.close()
        for file in (self._metrics, self._lists):
            if file:
                file.close()


class NoRecord:
    """Stands in for a record in the processes that keep none."""

    kept: tuple[()] = ()

    def __init__(self, plan: Plan) -> None:
        """Keeps nothing."""
        self._plan = plan

    def restore(self, like: TrainState) -> None:
        return None

    def begin(self, start: int) -> None:
        pass

    def open_sinks(self, start: int) -> None:
        pass

    def holds_evaluation(self, update: int) -> bool:
        return False

    def holds(self, update: int, name: str) -> bool:
        return False

    def write_lists(self, done: int, values: Mapping[str, Any]) -> None:
        pass

    def write(self, done: int, values: Values) -> None:
        pass

    def due(self, done: int) -> bool:
        # Where the state is spread, all bring their parts of it.
        return done in self._plan.save_after

    def save(self, done: int, state: TrainState, last: bool, best: bool = False) -> None:
        pass

    def is_best(self, values: Mapping[str, float]) -> bool:
        return False

    def finish(self, done: int, state: TrainState) -> None:
        pass

    def newest(self) -> str:
        return "process 0 knows of the checkpoints"

    def summary(self) -> str:
        return ""

    def close(self) -> None:
        pass
