"""Checks that the runs which a sweep's folder holds are those of the sweep, before any is run."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from lbsgd.checkpoint.identity import identity_differences
from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import Status, standing
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.experiments.tuning import TUNING_SEED, best, points
from lbsgd.run.config import in_effect, resolve, run_keys
from lbsgd.run.flags import described_config
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath


class _Expected(NamedTuple):
    """Holds what a workdir is to hold, if it holds a run.

    Attributes:
      config: resolved, but for the seed.
    """

    workdir: AnyPath
    config: ml_collections.ConfigDict
    seed: int


def check_row(sweep: Sweep, folder: SweepFolder, row: Row) -> None:
    """Checks that the runs which there are of a row have the config that the row has now.

    Raises:
      ConfigError: one has another.
    """
    for expected in _expected(sweep, folder, row):
        differ = _differences(expected)
        if not differ:
            continue
        at = f"row {row.name!r}: {expected.workdir} holds a run that differs in {differ}"
        if sweep.settings.tune and expected.seed != TUNING_SEED:
            raise ConfigError(
                f"{at}, for another point is the best of the row by now; remove its seed_* folders "
                "to run its seeds anew with that one, or set Settings(tune_points=...) back"
            )
        raise ConfigError(
            f"{at}; give the row another name, set it back, or remove {folder.path / row.folder}"
        )


def _expected(sweep: Sweep, folder: SweepFolder, row: Row) -> Iterator[_Expected]:
    """Yields the runs there are of a row whose configs are known: its seeds once it is tuned."""
    tuned: Mapping[str, Any] = {}
    if sweep.settings.tune:
        tried = points(sweep.file, sweep.settings)
        for i, values in enumerate(tried):
            config = sweep.config(row, TUNING_SEED, **values)
            yield _Expected(folder.point(row, i), config, TUNING_SEED)
        found = best(folder, row, sweep)
        if found is None or found.tried < len(tried):
            return
        tuned = found.values
    # One for all seeds, of which there may be many.
    config = sweep.config(row, 0, **tuned)
    for seed in _numbers(folder.path / row.folder, "seed_"):
        yield _Expected(folder.seed(row, seed), config, seed)


def _numbers(folder: AnyPath, prefix: str) -> list[int]:
    """Lists the numbers behind a prefix of the names in a folder."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    rest = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return sorted(int(number) for number in rest if number.isdecimal())


def _differences(expected: _Expected) -> str:
    """Lists where the run of a workdir has another config: "" if nowhere, or if there is none."""
    workdir = Workdir(expected.workdir)
    if not (workdir.config.is_file() and workdir.holds_updates()):
        return ""
    here = {**json.loads(json.dumps(expected.config.to_dict())), "seed": expected.seed}
    if {**workdir.read_config(), "log": None} == {**here, "log": None}:
        return ""  # as nearly always, and all keys need not be looked at
    configs = resolve(described_config(expected.workdir)), expected.config
    there, here = (run_keys(in_effect(config)) for config in configs)
    # A run can go on with another target, but what is complete has come to the one that it had; and
    # only one that goes on looks whether its initial weights are those that it began with.
    if standing(expected.workdir).status is Status.COMPLETE:
        there["stop_at"], here["stop_at"] = (list(config.stop_at) for config in configs)
        for key in ("init_from", "init_ema"):
            there[key], here[key] = (config[key] for config in configs)
    return identity_differences(there, {**here, "seed": expected.seed})
