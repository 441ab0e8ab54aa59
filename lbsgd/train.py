"""The loop: one run from its config to its result, read from top to bottom."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.profiler import StepTraceAnnotation, TraceAnnotation

from lbsgd.diagnostics.live import Diagnostics
from lbsgd.run.build import Run, build
from lbsgd.run.calls import calls_between
from lbsgd.run.evaluation import Evaluation
from lbsgd.run.explain import explain, parameter_table
from lbsgd.run.plan import Plan
from lbsgd.run.record.monitor import Monitor
from lbsgd.run.record.process_log import ProcessLog
from lbsgd.run.record.progress import Progress, open_progress
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.run.record.result import Outcome, finish, write_diverged
from lbsgd.run.record.speed import Speed
from lbsgd.run.restoring import restore_state, save_best, state_of_process, state_to_store
from lbsgd.run.updates import MakeUpdates, OwnUpdates, Updates, enough_memory_for_step
from lbsgd.run.workdir import Workdir
from lbsgd.step.train_step import TrainState
from lbsgd.system.devices import explain_out_of_memory, precision
from lbsgd.system.errors import CodeError, ConfigError, DivergedError
from lbsgd.system.files import AnyPath, any_path
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


class Session(NamedTuple):
    """Holds what a run has open while it trains.

    Attributes:
      should_stop: asked with the number of updates done.
    """

    run: Run
    folder: Workdir
    record: Record | NoRecord
    progress: Progress
    log_file: ProcessLog
    should_stop: Callable[[int], bool]


class Reached(NamedTuple):
    """Tells where a run has come to.

    Attributes:
      state: None where nothing was done yet.
      evaluation_pending: whether `state` is still to be evaluated.
      at_target: whether an evaluation reached `stop_at`.
      speed: None if nothing was trained.
    """

    state: TrainState | None
    evaluation_pending: bool
    at_target: bool
    speed: Speed | None = None

    @property
    def done(self) -> int:
        """Returns the number of updates done."""
        return int(self.state.update_index) if self.state else 0


def run(
    config: ml_collections.ConfigDict,
    workdir: str | AnyPath,
    *,
    should_stop: Callable[[int], bool] = lambda updates: False,
    on_metrics: Callable[[int, Mapping[str, float]], None] | None = None,
    make_updates: MakeUpdates = OwnUpdates,
    shown: bool = True,
) -> Outcome:
    """Trains as a resolved config says; resumes from the newest checkpoint in `workdir`.

    Process 0 alone reads and writes there; each process has a log of its own.

    Args:
      config: from `lbsgd.run.config.resolve`.
      workdir: the folder of the run, on a disk or in a bucket ("gs://bucket/runs/x").
      should_stop: asked with the number of updates done, before each update and while evaluating;
        once true, the run saves a checkpoint and ends.
      on_metrics: called in process 0 with each line of metrics, the number of updates done and
        values by name; its first error is a line, and it is not called again.
      make_updates: holds the state and makes the updates, by default with steps of its own.
      shown: whether the lines of the run are printed too, and not in its log alone.

    Raises:
      ConfigError: something the user can put right.
      DivergedError: the loss or the gradient is not finite.
    """
    # What is opened is closed in reverse order, whatever ends the run: the record before the log
    # that says why, and the lock of the workdir last.
    with precision(config.dtype), contextlib.ExitStack() as opened:
        folder = Workdir(any_path(workdir))
        session = _open(config, folder, should_stop, on_metrics, shown, opened)
        start = _resume(session)
        if _nothing_left(session.run.plan, start):
            session.progress.line(_complete(session, start))
            return _finish(session, start, complete=True)
        start = _begin(session, start)
        try:
            reached = start if should_stop(start.done) else _train(session, start, make_updates)
        except DivergedError as error:
            problem = write_diverged(session.run.plan, session.folder, str(error))
            if problem:
                session.progress.line(problem)
            # Only here is it known which checkpoint is from before the trouble.
            raise DivergedError(f"{error}; {session.record.newest()}") from error
        assert reached.state is not None
        # Before the result, which must not speak of updates that the disk does not have.
        session.record.finish(reached.done, state_to_store(session.run.program, reached.state))
        session.progress.line(session.record.summary())
        return _finish(session, reached, complete=_nothing_left(session.run.plan, reached))


# --- before training ---------------------------------------------------------------------------


def _open(
    config: ml_collections.ConfigDict,
    folder: Workdir,
    should_stop: Callable[[int], bool],
    on_metrics: Callable[[int, Mapping[str, float]], None] | None,
    shown: bool,
    opened: contextlib.ExitStack,
) -> Session:
    """Builds the run, claims its workdir, and opens log, progress and record."""
    run = build(
        config,
        folder.initial_weights,
        # First of what takes long: a folder of another run is a mistake that is soon made.
        lambda identity: in_process_0(lambda: folder.check_owner(identity)),
    )
    plan, machine = run.plan, describe_machine()
    validation = run.feed.splits.validation.fingerprint
    # Before anything is written; of the config they agreed before the data were opened.
    check_processes_agree({**plan.identity(), "the validation set": validation})

    def open_(part: Any) -> Any:
        return opened.enter_context(contextlib.closing(part))

    in_process_0(
        lambda: open_(
            folder.claim(
                plan.identity(),
                config.to_dict(),
                machine,
                validation,
                interface=plan.interface.to_json(),
                evaluation=run.feed.eval_batches().to_json(),
            )
        )
    )
    # From here on a crash leaves its stacks in the log; before there is no folder for one.
    log_file = open_(ProcessLog(folder.log))
    opened.push(log_file.failure)
    log_file.line(describe_process())
    process, processes = jax.process_index(), jax.process_count()
    # Of several processes none draws a bar: what starts them may give each a terminal to fill.
    how = {"shown": shown and process == 0, "bar": processes == 1}
    progress = open_(open_progress(plan.total_updates, plan.task.metrics, log_file.line, **how))
    differ = different_commits(machine["git_commit"])
    if differ:
        progress.line(differ)
    # The state is alike everywhere, so one process writes it, and the disk need not be shared.
    record = open_(NoRecord(plan) if process else Record(plan, folder, progress.line, on_metrics))
    return Session(run, folder, record, progress, log_file, should_stop)


def _resume(session: Session) -> Reached:
    """Restores the state of the newest good checkpoint, and reads how far the record is."""
    plan, record = session.run.plan, session.record
    state = restore_state(session.run.program, record)
    done = int(state.update_index) if state else 0
    # Drops metrics past the checkpoint: their updates are made again.
    in_process_0(lambda: record.begin(done))
    # All processes evaluate or none does, and process 0 alone has the metrics.
    evaluated = bool(from_process_0(np.array(record.holds_evaluation(done))))
    at_target = _was_at_target(plan, record) if state else False
    return Reached(state, done in plan.evaluate_after and not evaluated, at_target)


def _nothing_left(plan: Plan, reached: Reached) -> bool:
    """Tells whether a run is complete: trained to its end and evaluated, or at its target."""
    trained = reached.done == plan.total_updates and not reached.evaluation_pending
    return bool(reached.state) and (reached.at_target or trained)


def _begin(session: Session, start: Reached) -> Reached:
    """Says what is going to be done, and makes the initial state of a run that is new.

    What was restored counts before the weights of init_from, and these before what is drawn.
    """
    (plan, program, feed), folder = session.run, session.folder
    # A result of before would be taken for that of the run that now resumes.
    in_process_0(folder.forget_result)
    feed.corrupt.log_to(folder.corrupt)
    explanation = explain(plan)
    for line in explanation:
        session.progress.line(line)
    in_process_0(lambda: folder.write_explanation(explanation))
    session.record.open_sinks(start.done)
    if start.state:
        session.progress.line(f"resumes after update {start.done} from {folder.checkpoints}")
        return start
    in_process_0(lambda: folder.write_parameters(parameter_table(plan)))
    in_process_0(lambda: folder.write_initial_weights(plan.weights and plan.weights.table()))
    # Compiled and run on the devices: nobody has to send each of them the parameters.
    with explain_out_of_memory("the network", _LESS_NETWORK):
        return start._replace(state=program.start())


# --- training ----------------------------------------------------------------------------------


def _train(session: Session, start: Reached, make_updates: MakeUpdates) -> Reached:
    """Makes the updates after `start`, until they are done, are to stop or reach the target."""
    plan, program, feed = session.run
    pending, at_target = start.evaluation_pending, start.at_target
    assert start.state is not None
    begun, target = time.monotonic(), plan.target
    first = done = start.done
    with contextlib.ExitStack() as opened:
        # The first batches are loaded while the step is compiled.
        batches = opened.enter_context(contextlib.closing(feed.training(done)))
        updates = opened.enter_context(contextlib.closing(make_updates(program, start.state, done)))
        # Not within the loop, so that compiling does not count as training.
        _await_compilation(session, updates, done, begun)
        calls = calls_between(plan, done, plan.total_updates)
        session.progress.begin(done)
        monitor = Monitor(
            plan,
            session.record,
            session.progress,
            session.log_file.watch(plan.config.runtime),
            session.should_stop,
            program.numbers.reported,
            start=done,
            skipped=int(updates.state.skipped),
        )
        evaluate = Evaluation(program, feed, monitor)
        diagnostics = Diagnostics(program, feed, monitor)
        next_batch = monitor.batches(batches)
        while True:
            # The order is that of a loss: what is trained is saved, then evaluated, then measured.
            last = done == plan.total_updates
            due = last or monitor.record.due(done)
            if pending or due:
                # The metrics up to here are on the disk before the checkpoint of here is.
                with enough_memory_for_step(plan, done):
                    monitor.drain()
            # Whatever becomes of an evaluation, the training before it is on the disk.
            if due:
                with monitor.paused(), TraceAnnotation("save"):
                    monitor.record.save(done, state_to_store(program, updates.state), last)
            # A state that was restored is on the disk already, and is not saved once more.
            fresh = (lambda: state_of_process(program, updates)) if done > first else None
            with _saved_on_error(monitor, done, fresh, "evaluates it and resumes"):
                if pending:
                    with monitor.paused(), TraceAnnotation("evaluate"):
                        values = evaluate(done, updates.state)
                    # Stopped in the middle: the run that resumes evaluates this state first.
                    pending = values is None
                    if values:
                        monitor.evaluation(done, values)
                        save_best(program, monitor.record, done, updates.state, values)
                        at_target = target is not None and target.reached(values)
                diagnostics.at(done, updates)
            if monitor.should_stop(done) or last or at_target:
                break  # `Record.finish` waits for the last state, and saves one that was not due
            with _saved_on_error(monitor, done, fresh, "resumes from there"):
                with TraceAnnotation("wait for batch"):
                    call, batch = next(calls), next(next_batch)
            with (
                enough_memory_for_step(plan, done),
                StepTraceAnnotation("update", step_num=done),
            ):
                # Before the step, which takes the state's memory for the next one.
                diagnostics.before(done + 1, updates, batch)
                metrics = updates(call, batch)
                done = call.done
                # Nothing waits for the devices here, but for updates that are several calls old.
                monitor.updates(call, diagnostics.after(done, metrics))
            pending = done in plan.evaluate_after
        monitor.drain()
        return Reached(updates.state, pending, at_target, monitor.speed())


def _await_compilation(session: Session, updates: Updates, done: int, begun: float) -> None:
    """Waits for the first compiled step, if an update follows at all."""
    plan, program, _ = session.run
    # A run that only has its last state to evaluate compiles no step.
    call = next(calls_between(plan, done, plan.total_updates), None)
    if call:
        with enough_memory_for_step(plan, done):
            updates.wait(call)
        if not program.compiled:  # when accumulation was chosen
            session.progress.line(f"compiled in {time.monotonic() - begun:.1f} s")


@contextlib.contextmanager
def _saved_on_error(
    monitor: Monitor, done: int, fresh: Callable[[], TrainState] | None, then: str
) -> Iterator[None]:
    """Saves the state, which is whole, before an error within ends the run.

    Args:
      monitor: of which all updates are to be in the metrics by then.
      fresh: gives the state after `done` updates; None if that was there before this run resumed.
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
        if isinstance(error, CodeError):
            saved += ", with --config.code_may_differ=True"
        try:
            monitor.drain()
            if fresh is not None:
                monitor.record.finish(done, fresh())
        except DivergedError:
            raise
        except Exception as failure:
            saved = str(failure)
        # Others saved nothing, and must not claim it.
        if jax.process_index():
            saved = "process 0 says what is saved"
        if isinstance(error, ConfigError):
            raise ConfigError(f"{error}; {saved}") from error
        error.add_note(f"lbsgd: {saved}")
        raise


# --- after training ----------------------------------------------------------------------------


def _finish(session: Session, reached: Reached, *, complete: bool) -> Outcome:
    return finish(
        session.run.plan,
        session.folder,
        session.progress,
        reached.done,
        complete,
        reached.speed,
        session.run.feed.corrupt.names,
    )


def _complete(session: Session, reached: Reached) -> str:
    """Says that nothing is left to do."""
    plan, done = session.run.plan, reached.done
    what = f"{pluralize(done, 'update')} {'is' if done == 1 else 'are'} done"
    text = f"{session.folder.path} is complete: {what}"
    if not reached.at_target or done == plan.total_updates:
        return text
    return (
        f"{text}, and the target was reached, {plan.target}; without stop_at, "
        f"or with another, it goes on to update {plan.total_updates:,}"
    )


def _was_at_target(plan: Plan, record: Record | NoRecord) -> bool:
    """Tells whether an evaluation before reached the target, as process 0 has it in the metrics."""
    found = plan.target is not None and plan.target.first(record.kept) is not None
    return bool(from_process_0(np.array(found)))
