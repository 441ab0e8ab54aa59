"""Trains the runs of jobs in this process, one after the other; what fails is noted, not raised."""

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence

import ml_collections

from lbsgd import train
from lbsgd.experiments.outcome import forget_failure, note_failure
from lbsgd.experiments.running.jobs import Job, Run
from lbsgd.run.record.result import Outcome
from lbsgd.system.errors import ConfigError, DivergedError, first_line
from lbsgd.system.files import any_path
from lbsgd.system.text import one_line

# Takes the index of a run of the job, how far it is, and its metrics by name.
Tell = Callable[[int, "Progress", Mapping[str, float]], None]
Progress = tuple[int, float]


def train_job(job: Job, should_stop: Callable[[int], bool], tell: Tell) -> None:
    """Trains what a job has left, until it is done or is to stop.

    Whatever comes up ends a run and not the process: its folder then says why it failed.

    Args:
      should_stop: asked with the number of updates done.
      tell: called with the metrics of runs; progress is the updates done, and what fraction of all.
    """
    for run in job.runs:
        with contextlib.suppress(OSError):  # training finds out, and says so
            forget_failure(any_path(run.workdir))
    if job.at_once != 1 and len(job.runs) > 1:
        _train_together(job, should_stop, tell)
        return
    for index, run in enumerate(job.runs):
        if index and should_stop(0):
            return
        _note(run, _alone(index, run, should_stop, tell))


def _alone(
    index: int, run: Run, should_stop: Callable[[int], bool], tell: Tell
) -> Outcome | BaseException:
    print(f"\n=== {run}: {run.workdir}", flush=True)
    try:
        return train.run(
            run.config,
            run.workdir,
            should_stop=should_stop,
            on_metrics=lambda done, values: tell(index, _progress(run, done, values), values),
        )
    except (Exception, SystemExit) as error:  # of the code of others too
        return error


def _train_together(job: Job, should_stop: Callable[[int], bool], tell: Tell) -> None:
    """Trains so many runs at once as the job says, or as are fastest."""
    from lbsgd.experiments.together import choose_together

    print(f"\n=== {job}, together", flush=True)
    try:
        size = job.at_once or choose_together(job.runs[0].config, len(job.runs))
    except (Exception, SystemExit) as error:
        for run in job.runs:
            _note(run, error)
        return
    for first in range(0, len(job.runs), size):
        if first and should_stop(0):
            return
        members = range(first, min(first + size, len(job.runs)))
        for i, outcome in zip(members, _outcomes(job, members, should_stop, tell), strict=True):
            _note(job.runs[i], outcome)


def _outcomes(
    job: Job, members: range, should_stop: Callable[[int], bool], tell: Tell
) -> Sequence[Outcome | BaseException]:
    """Trains some of a job's runs at once."""
    from lbsgd.experiments.together import run_together

    if len(members) == 1:
        return [_alone(members[0], job.runs[members[0]], should_stop, tell)]

    def on_metrics(index: int, done: int, values: Mapping[str, float]) -> None:
        run = job.runs[members[index]]
        tell(members[index], _progress(run, done, values), values)

    configs = [job.runs[i].config for i in members]
    workdirs = [any_path(job.runs[i].workdir) for i in members]
    try:
        return run_together(configs, workdirs, should_stop=should_stop, on_metrics=on_metrics)
    except (Exception, SystemExit) as error:
        return [error] * len(members)


def _note(run: Run, outcome: Outcome | BaseException) -> None:
    """Writes down why a run failed, if it did; of a run that diverged its own result says it."""
    if isinstance(outcome, Outcome):
        return
    reason = one_line(str(outcome))
    if not isinstance(outcome, (ConfigError, DivergedError)):
        traceback.print_exception(outcome)
        name = type(outcome).__name__
        said = first_line(outcome) if isinstance(outcome, Exception) else str(outcome)
        reason = one_line(said if said == name else f"{name}: {said}")
    print(f"{run}: {reason}", flush=True)
    if not isinstance(outcome, DivergedError):
        try:
            note_failure(any_path(run.workdir), reason)
        except OSError as error:
            print(f"{run.workdir}/failed.json cannot be written ({error.strerror or error})")


def _progress(run: Run, done: int, values: Mapping[str, float]) -> Progress:
    return done, fraction_done(run.config, done, values.get("epoch", 0.0))


def fraction_done(config: ml_collections.ConfigDict, done: int, epoch: float) -> float:
    """Tells how much of a run is done, from 0 to 1.

    Args:
      done: updates.
      epoch: which these are.

    Returns:
      0 where the length is in examples and the batch grows: when it does is not known here.
    """
    if config.total_steps:
        return min(1.0, done / config.total_steps)
    if config.total_epochs:
        return min(1.0, epoch / config.total_epochs)
    growth = config.batch_growth
    if growth.sizes or growth.in_place_of_decay:
        return 0.0
    return min(1.0, done * config.batch_size / config.total_examples)
