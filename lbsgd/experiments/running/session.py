"""Starts a sweep: runs what is left of it, here or on a cluster, and reports it."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import OVER, Status
from lbsgd.experiments.running.board import Board
from lbsgd.experiments.running.claim import check_row
from lbsgd.experiments.running.display import Display, open_display
from lbsgd.experiments.running.job_queue import Queue
from lbsgd.experiments.running.naming import sweep_name
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import EXIT_DONE, EXIT_FAILED, EXIT_PREEMPTED, ConfigError
from lbsgd.system.files import AnyPath
from lbsgd.system.locks import lock_of
from lbsgd.system.text import pluralize

# Runs what a queue hands out, and tells whether it was stopped before all was done.
Engine = Callable[[Queue, Board, Display, pathlib.Path], bool]


def run_sweep(
    sweep: Sweep, folder: SweepFolder, rows: Sequence[Row], engine: Engine, processes: int
) -> int:
    """Runs what is left of the rows, and returns the exit code: 0 done, 1 some failed, 75 stopped.

    Args:
      rows: of the sweep, those that are to be run now.
      engine: runs it.
      processes: at once, as far as is known, to estimate how long it takes.

    Raises:
      ConfigError: the folder is another sweep's, or cannot be written, or is in use.
    """
    _check_place(sweep, folder)
    check_rows(sweep, folder, sweep.rows)
    with _locked(folder):
        folder.describe(sweep)
        board = board_of(sweep, folder, rows)
        jobs = Queue(sweep, folder, rows)
        board.reset_failures([run for job in jobs for run in job.runs])
        print(describe(sweep, board), flush=True)
        logs = _log_folder(folder)
        with open_display(board, processes) as display:
            stopped = engine(jobs, board, display, logs)
        return _finish(folder, board, jobs, logs, stopped)


def _check_place(sweep: Sweep, folder: SweepFolder) -> None:
    """Raises ConfigError where the folder is a run's or another sweep's, or within one."""
    if Workdir(folder.path).config.is_file():
        raise ConfigError(f"{folder.path} is the workdir of a run; choose another --workdir")
    there = folder.read().file if folder.is_sweep() else sweep.file
    if sweep_name(there) != sweep_name(sweep.file):
        raise ConfigError(f"{folder.path} holds the sweep of {there}; choose another --workdir")
    parent = folder.path.absolute().parent
    for above in (parent, parent.parent):
        if SweepFolder(above).is_sweep():
            raise ConfigError(
                f"{folder.path} lies within the sweep in {above}; choose another --workdir"
            )


def check_rows(sweep: Sweep, folder: SweepFolder, rows: Sequence[Row]) -> None:
    """Checks that what the folder holds of the rows has the configs that they have now.

    Raises:
      ConfigError: a run has another.
    """
    for row in rows:
        check_row(sweep, folder, row)


def board_of(sweep: Sweep, folder: SweepFolder, rows: Sequence[Row]) -> Board:
    """Reads how far the rows are."""
    settings = sweep.settings
    points = range(settings.tune_points if settings.tune else 0)
    return Board(
        {row.name: [folder.seed(row, i) for i in range(settings.seeds)] for row in rows},
        {row.name: [folder.point(row, i) for i in points] for row in rows},
    )


def describe(sweep: Sweep, board: Board) -> str:
    """Says how large a sweep is, and what is there of it: "25 runs of 5 rows: 20 complete, ..."."""
    counts = {status: sum(line.count(status) for line in board.lines.values()) for status in Status}
    to_do = board.total - sum(counts[status] for status in OVER)
    found = [f"{counts[status]} {status}" for status in OVER if counts[status]]
    rows = pluralize(len(board.lines), "row")
    return f"{pluralize(board.total, 'run')} of {rows}: {', '.join([*found, f'{to_do} to do'])}"


@contextlib.contextmanager
def _locked(folder: SweepFolder) -> Iterator[None]:
    """Makes sure that no other process runs the sweep of a folder.

    Raises:
      ConfigError: one does, or the folder cannot be written.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = lock_of(folder.path)
    except OSError as error:
        raise _unwritable(folder.path, error) from error
    with contextlib.closing(lock):
        holder = lock.take()
        if holder:
            raise ConfigError(
                f"the sweep in {folder.path} is being run by {holder}; end that, or choose another "
                "--workdir"
            )
        yield


def _unwritable(path: AnyPath, error: OSError) -> ConfigError:
    return ConfigError(
        f"{path} cannot be written ({error.strerror or error}); choose another --workdir"
    )


def _log_folder(folder: SweepFolder) -> pathlib.Path:
    """Makes the folder of what processes print, which is on a disk also where the sweep is not.

    Raises:
      ConfigError: it cannot be made.
    """
    logs = folder.logs
    if not isinstance(logs, pathlib.Path):
        return pathlib.Path(tempfile.mkdtemp(prefix="lbsgd-sweep-"))
    try:
        logs.mkdir(exist_ok=True)
    except OSError as error:
        raise _unwritable(logs, error) from error
    return logs


def _finish(
    folder: SweepFolder, board: Board, jobs: Queue, logs: pathlib.Path, stopped: bool
) -> int:
    """Makes the report, says what failed, and returns the exit code."""
    if stopped:
        print(f"stopped: {board.done} of {board.total} runs done; the same command resumes")
        return EXIT_PREEMPTED
    if any(line.count(*OVER) for line in board.lines.values()):
        _report(folder.path)
    failed = [
        f"{workdir} failed: {standing.reason}"
        for line in board.lines.values()
        for workdir, standing in line.standings.items()
        if standing.status == Status.FAILED
    ]
    problems = [*failed, *jobs.problems.values()]
    for text in problems:
        print(text)
    if problems:
        print(f"logs: {logs}")
    return EXIT_FAILED if problems else EXIT_DONE


def _report(path: AnyPath) -> None:
    """Reports on the sweep; the runs are there also if that fails."""
    from lbsgd.experiments import report_command

    try:
        report_command.main([str(path)])
    except Exception as error:
        print(f"no report ({type(error).__name__}: {error}); lbsgd sweep report {path} makes it")
