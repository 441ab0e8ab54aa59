"""Runs a sweep as job arrays of SLURM, through submitit: each task of an array runs some jobs.

What is left is submitted as an array, and watched by how the workdirs stand. A task that ends
before its runs do (a time limit, a preemption, a node that is gone) leaves them to the next array.
A sweep that is started again while an array of before is still there waits for that first.
"""

import contextlib
import functools
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from lbsgd.experiments.outcome import ENDED, OVER, Standing, Status, forget_failure, note_failure
from lbsgd.experiments.running.board import Board, say_end
from lbsgd.experiments.running.display import Display
from lbsgd.experiments.running.job_queue import Queue
from lbsgd.experiments.running.jobs import MOST_STARTS, Job, Run, saved_updates
from lbsgd.experiments.running.session import Engine
from lbsgd.system.errors import ConfigError, first_line
from lbsgd.system.files import any_path, replace_file
from lbsgd.system.libraries import set_up_libraries
from lbsgd.system.preemption import StopSignal
from lbsgd.system.text import pluralize

# Between two looks at the workdirs.
SECONDS = 2.0
# Between two questions to SLURM.
QUEUE_SECONDS = 20.0
# Of a task, where nothing is said of it; one that ends before its runs do is followed by another.
TIMEOUT_MINUTES = 240
# Parameters that submitit has for every cluster; all others are SLURM's.
_SHARED = (
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
)


class Task(NamedTuple):
    """Holds a task of an array.

    Attributes:
      handle: of submitit, by which it is watched.
      jobs: that it runs, one after the other.
      before: updates that its runs had saved when it was submitted.
    """

    handle: Any
    jobs: tuple[Job, ...]
    before: int

    @property
    def runs(self) -> list[Run]:
        """The runs of its jobs."""
        return [run for job in self.jobs for run in job.runs]


def slurm_engine(parameters: Mapping[str, Any], tasks: int) -> Engine:
    """Makes the engine of a cluster.

    Args:
      parameters: of submitit, by name: partition, timeout_min, ...; `cluster` is "slurm" by
        default, and "local" runs the tasks on this machine.
      tasks: of an array, at most; 0 for one for each job.

    Raises:
      ConfigError: submitit is missing, or SLURM, or a parameter is unknown.
    """
    executor = functools.partial(_executor, parameters)
    executor(pathlib.Path("."))  # what is wrong is told before anything is written

    def engine(jobs: Queue, board: Board, display: Display, logs: pathlib.Path) -> bool:
        return _Arrays(executor(logs / "slurm"), jobs, board, display, logs / "slurm", tasks).run()

    return engine


def _executor(parameters: Mapping[str, Any], folder: pathlib.Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            "--engine slurm needs submitit: pip install 'lbsgd[slurm]' installs it"
        ) from error
    cluster = parameters.get("cluster", "slurm")
    given = {
        name if name in _SHARED else f"slurm_{name}": value
        for name, value in parameters.items()
        if name != "cluster"
    }
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(
            **{"name": "lbsgd-sweep", "timeout_min": TIMEOUT_MINUTES, **given}
        )
    except (RuntimeError, ValueError, NameError, AssertionError) as error:
        raise ConfigError(f"--engine slurm: {first_line(error)}") from error
    return executor


def in_queue(ids: Collection[str]) -> set[str] | None:
    """Asks SLURM which of some tasks are still in its queue; None if it does not answer.

    Args:
      ids: of tasks of arrays, as "17_3".
    """
    arrays = ",".join(sorted({task.partition("_")[0] for task in ids}))
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={arrays}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # It knows nothing of jobs that ended a while ago.
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return set(done.stdout.split()) & set(ids)


def run_jobs(jobs: Sequence[Job]) -> None:
    """Trains what jobs have left: what a task of an array does.

    SIGTERM, and SIGUSR2, by which submitit announces a time limit, have a run save and stop.
    """

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    set_up_libraries()
    with StopSignal() as stop:
        signal.signal(signal.SIGUSR2, ask_to_stop)
        # jax takes its time; a signal need not wait for it.
        from lbsgd.experiments.running.training import train_job

        for job in jobs:
            left = job.left()
            if left:
                train_job(left, lambda done: stop.should_stop(), lambda *progress: None)
            if stop.should_stop():
                return


class _Arrays:
    """Submits arrays until nothing is left to do."""

    def __init__(
        self,
        executor: Any,
        jobs: Queue,
        board: Board,
        display: Display,
        folder: pathlib.Path,
        tasks: int,
    ) -> None:
        self._executor, self._queue, self._board = executor, jobs, board
        self._display, self._folder, self._tasks = display, folder, tasks
        # By workdir, how often a run was submitted without getting any further.
        self._starts: dict[str, int] = {}
        self._told: set[str] = set()
        self._stopped = False

    def run(self) -> bool:
        """Runs all, and tells whether it was stopped before that."""
        with self._caught():
            self._await_before()
            while not self._stopped and (jobs := self._take()):
                self._watch(self._submit(jobs))
        return self._stopped

    def _take(self) -> list[Job]:
        """Takes all jobs there are, but for what is over."""
        taken = []
        while job := self._queue.next():
            # Tasks of before may have ended some of its runs while they were waited for.
            self._look(run for run in job.runs if run.standing().status in OVER)
            left = job.left()
            if left:
                taken.append(left)
            else:
                self._queue.over(job)
        return taken

    def _submit(self, jobs: Sequence[Job]) -> list[Task]:
        size = -(-len(jobs) // (self._tasks or len(jobs)))
        chunks = [tuple(jobs[i : i + size]) for i in range(0, len(jobs), size)]
        for run in (run for job in jobs for run in job.runs):
            with contextlib.suppress(OSError):  # training finds out, and says so
                forget_failure(any_path(run.workdir))
            self._board.begin(run)
            self._told.discard(run.workdir)
        try:
            handles = self._executor.map_array(run_jobs, chunks)
        except Exception as error:  # submitit has many, and SLURM says in them what is wrong
            raise ConfigError(f"--engine slurm: {' '.join(str(error).split())}") from error
        tasks = [
            Task(handle, chunk, sum(saved_updates(job) for job in chunk))
            for handle, chunk in zip(handles, chunks)
        ]
        self._remember(tasks)  # first of all, for from now on they run
        array = handles[0].job_id.partition("_")[0]
        number = pluralize(len(tasks), "task")
        self._display.line(f"submitted {number} as job {array}; logs in {self._folder}")
        return tasks

    def _watch(self, tasks: Sequence[Task]) -> None:
        """Waits until the tasks have ended, and tells of each run as soon as it is over."""
        going, looked = list(tasks), time.monotonic()
        while going and not self._stopped:
            self._look(run for task in going for run in task.runs)
            ended = {task.handle.job_id for task in going if task.handle.done()}
            # Without accounting submitit never learns of a task that was killed.
            if self._executor.cluster == "slurm" and time.monotonic() - looked > QUEUE_SECONDS:
                looked, ids = time.monotonic(), {task.handle.job_id for task in going}
                there = in_queue(ids)
                ended |= ids - (ids if there is None else there)
            for task in [task for task in going if task.handle.job_id in ended]:
                going.remove(task)
                self._end(task)
            self._display.refresh()
            if going:
                time.sleep(SECONDS)
        for task in going:
            task.handle.cancel()
        if not self._stopped:
            self._remember([])

    def _look(self, runs: Iterable[Run]) -> None:
        for run in runs:
            standing = run.standing()
            if run.workdir not in self._told and standing.status in ENDED:
                self._tell(run, standing)

    def _tell(self, run: Run, standing: Standing) -> None:
        self._told.add(run.workdir)
        self._board.end(run, standing)
        count = f" ({self._board.done} of {self._board.total} runs done)"
        self._display.line(say_end(run, standing) + count)

    def _end(self, task: Task) -> None:
        """Has runs that a task has left submitted again, as long as they get any further."""
        self._look(task.runs)
        further = sum(saved_updates(job) for job in task.jobs) > task.before
        for job in task.jobs:
            left = [run for run in job.runs if run.workdir not in self._told]
            for run in left:
                self._starts[run.workdir] = 1 if further else self._starts.get(run.workdir, 0) + 1
            if left and self._starts[left[-1].workdir] < MOST_STARTS:
                self._queue.put_back(job)
                continue
            for run in left:
                reason = f"its task ended {MOST_STARTS} times; see {task.handle.paths.stderr}"
                with contextlib.suppress(OSError):  # then it is said here alone
                    note_failure(any_path(run.workdir), reason)
                self._tell(run, Standing(Status.FAILED, reason, {}))
            self._queue.over(job)

    def _remember(self, tasks: Sequence[Task]) -> None:
        """Writes down the tasks that there are, for a start after this process was killed."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            ids = [task.handle.job_id for task in tasks]
            replace_file(self._folder / "submitted.json", json.dumps(ids) + "\n")

    def _await_before(self) -> None:
        """Waits for the tasks that an earlier start of the sweep has submitted."""
        try:
            ids = set(map(str, json.loads((self._folder / "submitted.json").read_text())))
        except (OSError, ValueError, TypeError):
            return
        if self._executor.cluster != "slurm" or not ids:
            return
        self._display.line(f"waits for tasks that were submitted before: {', '.join(sorted(ids))}")
        # No answer is no leave to submit them again.
        while not self._stopped and in_queue(ids) != set():
            time.sleep(QUEUE_SECONDS)

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        """Notes signals that ask to stop: then the tasks are cancelled, which has them save."""

        def note(number: int, frame: FrameType | None) -> None:
            self._stopped = True

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
