"""Jobs: what is left to do of a sweep, as a function of it and of how its workdirs stand."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import OVER, Standing, standing
from lbsgd.experiments.running.naming import with_names
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.experiments.tuning import TUNING_SEED, Best, best, points
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, any_path

# So often a run is started without getting any further before it has failed.
MOST_STARTS = 3


class Run(NamedTuple):
    """Holds a run of a sweep.

    Attributes:
      row: the name of its row.
      what: which of the row's it is: "seed 3", "point 5".
      workdir: a path on a disk or in a bucket.
      config: resolved.
    """

    row: str
    what: str
    workdir: str
    config: ml_collections.ConfigDict

    def __str__(self) -> str:
        return f"{self.row} {self.what}"

    def standing(self) -> Standing:
        """Tells how it stands."""
        return standing(any_path(self.workdir))


class Job(NamedTuple):
    """Holds what a process is given at once.

    Attributes:
      runs: of one row; several are alike but for their seeds.
      at_once: how many of them are trained in one compiled step; 0 measures what is fastest.
    """

    runs: tuple[Run, ...]
    at_once: int = 1

    @property
    def row(self) -> str:
        """The name of the row."""
        return self.runs[0].row

    def __str__(self) -> str:
        first, *others = self.runs
        return f"{first} to {others[-1].what.rpartition(' ')[2]}" if others else str(first)

    def dump(self) -> str:
        """Writes the job as a line of JSON, for another process."""
        runs = [{**run._asdict(), "config": run.config.to_dict()} for run in self.runs]
        return json.dumps({"runs": runs, "at_once": self.at_once})

    @classmethod
    def load(cls, line: str | bytes) -> "Job":
        """Reads a job that `dump` wrote.

        Raises:
          ValueError: it is not whole.
        """
        found = json.loads(line)
        # A frozen config has tuples where JSON has lists.
        configs = [ml_collections.FrozenConfigDict(run["config"]) for run in found["runs"]]
        runs = (Run(**{**run, "config": c}) for run, c in zip(found["runs"], configs))
        return cls(tuple(runs), found["at_once"])

    def left(self) -> "Job | None":
        """Drops the runs that are over by now; None if all are."""
        runs = tuple(run for run in self.runs if run.standing().status not in OVER)
        return self._replace(runs=runs) if runs else None


def seed_run(sweep: Sweep, folder: SweepFolder, row: Row, seed: int, **tuned: Any) -> Run:
    """Makes the run of a row with a seed.

    Args:
      tuned: values by dotted key of the config that were chosen for the row.
    """
    return _run(sweep, row, f"seed {seed}", str(folder.seed(row, seed)), seed, tuned)


def point_run(
    sweep: Sweep, folder: SweepFolder, row: Row, point: int, values: Mapping[str, Any]
) -> Run:
    """Makes the run of a row that tries a point.

    Args:
      values: of the point, by dotted key of the config.
    """
    return _run(sweep, row, f"point {point}", str(folder.point(row, point)), TUNING_SEED, values)


def _run(
    sweep: Sweep, row: Row, what: str, workdir: str, seed: int, tuned: Mapping[str, Any]
) -> Run:
    named = what if sweep.settings.seeds_at_once == 1 else ""
    config = with_names(sweep.config(row, seed, **tuned), sweep.file, row, named)
    return Run(row.name, what, workdir, config)


def chosen(sweep: Sweep, folder: SweepFolder, row: Row) -> Best:
    """Finds the values that a row was tuned to.

    Raises:
      ConfigError: no point is complete.
    """
    found = best(folder, row, sweep)
    if found is None:
        raise ConfigError(
            f"row {row.name!r}: none of its points is complete, so there is nothing to choose; "
            "give Settings(tune=...) other ranges, and a new folder"
        )
    return found


def jobs_of(
    sweep: Sweep, folder: SweepFolder, row: Row, tried: frozenset[str] = frozenset()
) -> list[Job]:
    """Lists what is to be done next for a row: its points, or once they are over its seeds.

    Args:
      tried: workdirs of the runs that failed since the sweep was started, and are left at that.

    Raises:
      ConfigError: the row cannot be tuned.
    """

    def left(workdir: AnyPath) -> bool:
        return str(workdir) not in tried and standing(workdir).status not in OVER

    to_try = [
        Job((point_run(sweep, folder, row, i, values),))
        for i, values in enumerate(points(sweep.file, sweep.settings))
        if left(folder.point(row, i))
    ]
    if to_try:
        return to_try
    tuned = chosen(sweep, folder, row).values if sweep.settings.tune else {}
    seeds = [seed for seed in range(sweep.settings.seeds) if left(folder.seed(row, seed))]
    runs = [seed_run(sweep, folder, row, seed, **tuned) for seed in seeds]
    return _grouped(runs, sweep.settings.seeds_at_once)


def _grouped(runs: Sequence[Run], at_once: int) -> list[Job]:
    """Makes jobs of so many runs each; 0 puts all into one."""
    size = at_once or len(runs)
    return [Job(tuple(runs[i : i + size]), at_once) for i in range(0, len(runs), max(1, size))]


def saved_updates(job: Job) -> int:
    """Counts the updates of the runs of a job that are saved."""
    return sum(_newest(run.workdir) for run in job.runs)


def _newest(workdir: str) -> int:
    try:
        names = [path.name for path in Workdir(any_path(workdir)).checkpoints.iterdir()]
    except OSError:
        return 0
    return max((int(name) for name in names if name.isdecimal()), default=0)
