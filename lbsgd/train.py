"""The loop: one run from its config to its result, read from top to bottom."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from lbsgd.diagnostics.live import Diagnostics
from lbsgd.run.build import Run, build
from lbsgd.run.compilation import CompiledSteps
from lbsgd.run.config import flatten
from lbsgd.run.evaluation import Evaluation
from lbsgd.run.explain import explain, parameter_table
from lbsgd.run.record.log import Log
from lbsgd.run.record.process_log import ProcessLog
from lbsgd.run.record.progress import Progress, open_progress
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.run.record.result import Outcome, finish
from lbsgd.run.record.speed import Speed
from lbsgd.run.target import Target
from lbsgd.run.workdir import Workdir
from lbsgd.step.train_step import TrainState
from lbsgd.system.devices import explain_out_of_memory
from lbsgd.system.errors import ConfigError, DivergedError
from lbsgd.system.machine import describe_machine
from lbsgd.system.processes import (
    check_processes_agree,
    describe_process,
    different_commits,
    from_process_0,
    in_process_0,
)
from lbsgd.system.text import pluralize

_LESS_NETWORK = "take a smaller one, or see what limits memory (a container, ulimit -v)"


class Reached(NamedTuple):
    """Where a run has come to.

    Attributes:
      owed: whether `state` is still to be evaluated.
      at_target: whether an evaluation reached `stop_at`.
      speed: None if nothing was trained.
    """

    state: TrainState
    owed: bool
    at_target: bool
    speed: Speed | None


def run(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    should_stop: Callable[[int], bool] = lambda updates: False,
) -> Outcome:
    """Trains as a resolved config says, from the newest checkpoint in `workdir` if there is one.

    Process 0 alone reads and writes there; each process has a log of its own.

    Args:
      config: from `lbsgd.run.config.resolve`.
      workdir: the folder of the run.
      should_stop: asked with the number of updates done, before each update and while evaluating;
        once true, the run saves a checkpoint and ends.

    Raises:
      ConfigError: something the user can put right.
      DivergedError: the loss or the gradient is not finite.
    """
    parts = build(config)
    folder = Workdir(pathlib.Path(workdir))
    machine = describe_machine()
    validation = parts.splits.validation.fingerprint
    alike = {"the validation set": validation, **_of_all_processes(config, machine)}
    check_processes_agree({**parts.identity(), **alike})
    with contextlib.ExitStack() as opened:

        def open_(part: Any) -> Any:
            return opened.enter_context(contextlib.closing(part))

        in_process_0(
            lambda: open_(folder.claim(parts.identity(), config.to_dict(), machine, validation))
        )
        log_file = open_(ProcessLog(folder.log))
        opened.push(log_file.failure)
        log_file.line(describe_process())
        process, processes = jax.process_index(), jax.process_count()
        progress = open_(open_progress(parts.total_updates, log_file.line, process, processes))
        differ = different_commits(machine["git_commit"])
        if differ:
            progress.line(differ)
        record = open_(NoRecord() if process else Record(parts, folder, progress.line))
        state = _restore(parts, record)
        start = int(state.update) if state else 0
        in_process_0(lambda: record.begin(start))
        owed = start in parts.evaluate_after and not from_process_0(
            np.array(record.holds_evaluation(start))
        )
        at_target = _was_at_target(parts, record)
        if state and (at_target or (start == parts.total_updates and not owed)):
            progress.line(_complete(parts, folder, start, at_target))
            return finish(parts, folder, progress, start, True, None)
        in_process_0(folder.forget_result)
        parts.corrupt.log_to(folder.corrupt)
        for line in explain(parts):
            progress.line(line)
        if state:
            progress.line(f"goes on after update {start} from {folder.checkpoints}")
        else:
            log_file.line(parameter_table(parts))
            with explain_out_of_memory("the network", _LESS_NETWORK):
                state = parts.start()
        reached = Reached(state, owed, False, None)
        try:
            if not should_stop(start):
                reached = _train(parts, reached, record, progress, log_file, should_stop)
        except DivergedError as error:
            raise DivergedError(f"{error}; {record.newest()}") from error
        done = int(reached.state.update)
        record.finish(done, reached.state)
        progress.line(record.summary())
        at_end = done == parts.total_updates and not reached.owed
        return finish(parts, folder, progress, done, at_end or reached.at_target, reached.speed)


def _train(
    parts: Run,
    start: Reached,
    record: Record | NoRecord,
    progress: Progress,
    log_file: ProcessLog,
    should_stop: Callable[[int], bool],
) -> Reached:
    """The updates after `start`, until they are done, are to stop or have reached the target."""
    (state, owed, at_target, _), begun = start, time.monotonic()
    target = Target.of(parts.config.stop_at)
    first = done = int(state.update)
    with contextlib.ExitStack() as opened:
        # The first batches are loaded while the step is compiled.
        batches = opened.enter_context(contextlib.closing(parts.feed(done)))
        steps = opened.enter_context(contextlib.closing(CompiledSteps(parts, done)))
        if done < parts.total_updates:
            with _enough_memory_for_step(parts, done):
                steps(done)
            if not parts.compiled:  # when accumulation was chosen
                progress.line(f"compiled in {time.monotonic() - begun:.1f} s")
        progress.begin(done)
        alive = log_file.watch(parts.config.runtime)
        evaluate = Evaluation(parts, alive, should_stop)
        log = Log(parts, record, progress, alive, done, int(state.skipped))
        feed = log.fed(batches)
        diagnostics = Diagnostics(parts, record, progress, log, alive, should_stop)
        while True:
            last = done == parts.total_updates
            due = last or record.due(done)
            if owed or due:
                with _enough_memory_for_step(parts, done):
                    log.drain()
            # Whatever becomes of an evaluation, the training before it is on the disk.
            if due:
                with log.paused():
                    record.save(done, state, last)
            fresh = state if done > first else None
            with _kept(record, log, done, fresh, "evaluates it and goes on"):
                if owed:
                    with log.paused():
                        values = evaluate(done, state)
                    owed = values is None
                    if values:
                        log.evaluation(done, values)
                        at_target = target is not None and target.reached(values)
                diagnostics.at(done, state)
            if should_stop(done) or last or at_target:
                break  # `finish` waits for the last state, and saves one that was not due
            with _kept(record, log, done, fresh, "goes on from there"):
                batch = next(feed)
            with _enough_memory_for_step(parts, done):
                diagnostics.before(done + 1, state, batch)
                state, metrics = steps(done)(state, batch)
                done += 1
                log.update(done, diagnostics.after(done, metrics))
            owed = done in parts.evaluate_after
        log.drain()
    return Reached(state, owed, at_target, log.speed())


def _enough_memory_for_step(parts: Run, update: int) -> contextlib.AbstractContextManager[None]:
    """Says what to set where the step of an update takes more memory than there is."""
    last = parts.total_updates - 1
    placement = parts.placements[parts.timeline.batch_size(min(update, last))]
    remedy = "lower worker_batch_size, or the size of images or of the network"
    if placement.lanes > placement.lanes_in_group:
        remedy = f"set accumulation_steps to more than {placement.accumulation_steps}"
        if parts.config.accumulation_steps:
            remedy += ", or to 0 for the fewest that fit"
    return explain_out_of_memory("training", remedy)


@contextlib.contextmanager
def _kept(
    record: Record | NoRecord, log: Log, done: int, fresh: TrainState | None, then: str
) -> Iterator[None]:
    """Saves the state, which is whole, before an error within ends the run.

    Args:
      log: of which all updates are to be in the metrics by then.
      fresh: the state after `done` updates; None if it was there before this run went on.
      then: what the same command does once the cause is gone.

    Raises:
      ConfigError: within, where the user can put it right; it says what is saved.
      DivergedError: an update up to there was not finite.
    """
    try:
        yield
    except DivergedError:
        raise
    except Exception as error:
        if not done:
            raise  # there is nothing to save
        saved = f"update {done} is saved: once that is mended, the same command {then}"
        try:
            log.drain()
            if fresh is not None:
                record.finish(done, fresh)
        except DivergedError:
            raise
        except Exception as failure:
            saved = str(failure)
        if jax.process_index():
            saved = "process 0 says what is saved"
        if isinstance(error, ConfigError):
            raise ConfigError(f"{error}; {saved}") from error
        error.add_note(f"lbsgd: {saved}")
        raise


def _of_all_processes(config: ml_collections.ConfigDict, machine: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in all processes, besides what decides the numbers."""
    own = ("data.dir", "data.threads")
    keys = {key: value for key, value in flatten(config) if key not in own}
    return {**keys, "versions": machine["packages"]}


def _was_at_target(parts: Run, record: Record | NoRecord) -> bool:
    """Whether an evaluation before reached the target, as process 0 has it in the metrics."""
    target = Target.of(parts.config.stop_at)
    found = target is not None and target.first(record.kept) is not None
    return bool(from_process_0(np.array(found)))


def _complete(parts: Run, folder: Workdir, done: int, at_target: bool) -> str:
    """Says that nothing is left to do."""
    text = (
        f"{folder.path} is complete: {pluralize(done, 'update')} "
        f"{'is' if done == 1 else 'are'} done"
    )
    if not at_target or done == parts.total_updates:
        return text
    return (
        f"{text}, and the target was reached, {Target.of(parts.config.stop_at)}; without stop_at, "
        f"or with another, it goes on to update {parts.total_updates:,}"
    )


def _restore(parts: Run, record: Record | NoRecord) -> TrainState | None:
    """The state that process 0 has found, on all devices; None if there is none."""
    like = parts.abstract_state()
    nothing = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
    found: tuple[int, Any] | None = in_process_0(lambda: record.restore(like))
    update, state = found or (-1, nothing)
    if from_process_0(np.array(update)) < 0:
        return None
    return jax.tree.map(
        lambda x, s: jax.make_array_from_process_local_data(s.sharding, x, s.shape),
        from_process_0(state),
        like,
    )
