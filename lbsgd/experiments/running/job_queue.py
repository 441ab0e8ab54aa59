"""The queue of a sweep: hands out jobs, and finds what a row can do once they are over."""

import collections
from collections.abc import Iterator, Sequence

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.running.claim import check_row
from lbsgd.experiments.running.jobs import Job, jobs_of
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.system.errors import ConfigError


class Queue:
    """Hands out what is left to do, row by row; what is over is handed out no more.

    Attributes:
      problems: by row, why no more can be done for it; by "" why nothing more can.
    """

    def __init__(self, sweep: Sweep, folder: SweepFolder, rows: Sequence[Row]) -> None:
        self._sweep, self._folder = sweep, folder
        self._rows = {row.name: row for row in rows}
        self._ready: collections.deque[Job] = collections.deque()
        self._outstanding = collections.Counter[str]()
        self._tried: set[str] = set()
        self.problems: dict[str, str] = {}
        for row in rows:
            self._extend(row)

    def __iter__(self) -> Iterator[Job]:
        """Iterates over what can be handed out now, and leaves it there."""
        return iter(tuple(self._ready))

    def next(self) -> Job | None:
        """Takes the next job; None if there is none for now."""
        return self._ready.popleft() if self._ready else None

    def put_back(self, job: Job) -> None:
        """Has a job handed out again, first of all."""
        self._ready.appendleft(job)

    def over(self, job: Job) -> None:
        """Notes that a job has ended, well or not, and adds what its row can do now."""
        self._tried.update(run.workdir for run in job.runs)
        self._outstanding[job.row] -= 1
        problem = self._wrong_metric(job)
        if problem:
            # No run could be reported, or chosen by it: it would be a pity to train more.
            self.problems[""] = problem
            self._ready.clear()
        elif not self._outstanding[job.row] and not self.problems.get(""):
            self._extend(self._rows[job.row])

    def _wrong_metric(self, job: Job) -> str:
        """Says which metric of the settings evaluations do not have: "" for none, or if unknown."""
        settings = self._sweep.settings
        for known in filter(None, (run.standing().result.get("metrics") for run in job.runs)):
            for field in ("metric", "tune_metric"):
                name = getattr(settings, field)
                if name and name not in known:
                    return (
                        f"Settings: {field}={name!r} is no metric of evaluations, which are "
                        f"{', '.join(known)}; mend it, and the same command goes on"
                    )
        return ""

    def _extend(self, row: Row) -> None:
        try:
            check_row(self._sweep, self._folder, row)
            jobs = jobs_of(self._sweep, self._folder, row, frozenset(self._tried))
        except ConfigError as error:
            self.problems[row.name] = str(error)
            return
        self._ready.extend(jobs)
        self._outstanding[row.name] += len(jobs)
