"""Checks that the runs which a sweep's folder holds are those of the sweep, before any is run."""

from collections.abc import Iterator

from lbsgd.checkpoint.identity import identity_differences
from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.running.jobs import Run, point_runs, seed_runs
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.experiments.tuning import best
from lbsgd.run.config import in_effect, resolve, run_keys
from lbsgd.run.flags import described_config
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, any_path


def check_row(sweep: Sweep, folder: SweepFolder, row: Row) -> None:
    """Checks that the runs which there are of a row have the config that the row has now.

    Raises:
      ConfigError: one has another.
    """
    for run in _runs(sweep, folder, row):
        differ = _differences(run)
        if not differ:
            continue
        at = f"row {row.name!r}: {run.workdir} holds a run that differs in {differ}"
        if sweep.settings.tune and not run.what.startswith("point"):
            raise ConfigError(
                f"{at}, for another point is the best of the row by now; remove its seed_* folders "
                "to run its seeds anew with that one, or set Settings(tune_points=...) back"
            )
        raise ConfigError(
            f"{at}; give the row another name, set it back, or remove {folder.path / row.folder}"
        )


def _runs(sweep: Sweep, folder: SweepFolder, row: Row) -> Iterator[Run]:
    """Yields the runs there are of a row whose configs are known: its seeds once it is tuned."""
    seeds = _numbers(folder.path / row.folder, "seed_")
    if not sweep.settings.tune:
        yield from seed_runs(sweep, folder, row, seeds)
        return
    tried = point_runs(sweep, folder, row)
    yield from tried
    found = best(folder, row, sweep)
    if found and found.tried == len(tried):
        yield from seed_runs(sweep, folder, row, seeds, **found.values)


def _numbers(folder: AnyPath, prefix: str) -> list[int]:
    """Lists the numbers behind a prefix of the names in a folder."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    rest = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return sorted(int(number) for number in rest if number.isdecimal())


def _differences(run: Run) -> str:
    """Lists where the run of a workdir has another config: "" if nowhere, or if there is none."""
    path = any_path(run.workdir)
    if not (Workdir(path).config.is_file() and Workdir(path).holds_updates()):
        return ""
    there = resolve(described_config(path))
    return identity_differences(run_keys(in_effect(there)), run_keys(in_effect(run.config)))
