"""Reads the results of sweeps and single runs from their folders."""

import dataclasses
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lbsgd.config.keys import flatten
from lbsgd.experiments import tuning
from lbsgd.experiments.folder import Description, SweepFolder
from lbsgd.experiments.outcome import Standing, Status, standing
from lbsgd.experiments.results import (
    Curve,
    Metric,
    Results,
    RowResults,
    Run,
    Tuned,
    read_results,
)
from lbsgd.experiments.settings import Settings
from lbsgd.experiments.sweep import Row
from lbsgd.run.record.metrics import read_whole_lines, training_means
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, any_path

# Of metrics.jsonl: how fast a run was, which is no result.
TIMES = ("images_per_second", "data_wait_percent")
# Of a line of metrics.jsonl, what is no metric.
CLOCKS = ("step", "epoch")
SEED = re.compile(r"seed_(\d+)")


def load(path: str | AnyPath) -> Results:
    """Reads the results of a sweep, or of a single run, finished or not.

        results = load("runs/x")
        for row in results.rows:
            print(row.name, row.finals("val_error").mean())

    Args:
      path: the folder of a sweep, that of one of its rows, the workdir of a run, which becomes a
        row with one run, or a results.json.

    Raises:
      ConfigError: it is none of these, or cannot be read.
    """
    place = any_path(path).absolute()  # so that "." has a name
    folder = SweepFolder(place)
    if place.is_file():
        return read_results(place)
    if folder.is_sweep():
        return _load_sweep(folder)
    if Workdir(place).config.is_file():
        return _load_run(place)
    if SweepFolder(place.parent).is_sweep():
        return _load_row(SweepFolder(place.parent), place.name)
    if (place / "results.json").is_file():
        return read_results(place / "results.json")
    raise ConfigError(f"{place} is neither the folder of a sweep nor the workdir of a run")


def _load_sweep(folder: SweepFolder) -> Results:
    found = folder.read()
    rows = tuple(_read_row(folder, row, found) for row in found.rows)
    return Results(folder.path.name, (found.file,), rows, found.settings)


def _load_row(folder: SweepFolder, name: str) -> Results:
    found = folder.read()
    rows = [row for row in found.rows if row.folder == name]
    if not rows:
        raise ConfigError(f"{folder.path / name} is no row of the sweep {folder.path}")
    read = _read_row(folder, rows[0], found)
    settings = dataclasses.replace(found.settings, baseline="", overlays=())
    return Results(folder.path.name, (found.file,), (read,), settings)


def _load_run(workdir: AnyPath) -> Results:
    """Reads a single run; one of a sweep has its row's name."""
    config = _config(_read_json(Workdir(workdir).config))
    run = read_run(workdir, int(config.get("seed", 0)))
    name, sweep = workdir.name, SweepFolder(workdir.parent.parent)
    if SEED.fullmatch(name) and sweep.is_sweep():
        rows = [row for row in sweep.read().rows if row.folder == workdir.parent.name]
        name = f"{rows[0].name}, seed {run.seed}" if rows else name
    return Results(workdir.name, (), (RowResults(name, {}, (run,)),), Settings(seeds=1))


def _read_row(folder: SweepFolder, row: Row, found: Description) -> RowResults:
    # More of them may have been run than the sweep now asks for.
    seeds = sorted({*range(found.settings.seeds), *_seeds_in(folder.path / row.folder)})
    runs = tuple(read_run(folder.seed(row, seed), seed) for seed in seeds)
    return RowResults(row.name, row.overrides, runs, _tuned(folder, row, found.settings, runs))


def _seeds_in(folder: AnyPath) -> list[int]:
    found: Iterable[AnyPath] = folder.iterdir() if folder.is_dir() else ()
    return [int(match[1]) for path in found if (match := SEED.fullmatch(path.name))]


def _tuned(folder: SweepFolder, row: Row, settings: Settings, runs: Sequence[Run]) -> Tuned | None:
    """Reads which point the runs have; before any has begun, which is the best so far."""
    best = tuning.best(folder, row) if settings.tune else None
    if not best:
        return None
    config: Mapping[str, Any] = next((run.config for run in runs if run.config), best.values)
    values = {key: config.get(key) for key in sorted(settings.tune)}
    points = [point._asdict() for point in tuning.points_of(folder, row)]
    return Tuned(values, best.tried, points)


def read_run(workdir: AnyPath, seed: int) -> Run:
    """Reads what came of a run, however far it got."""
    files, stands = Workdir(workdir), standing(workdir)
    if stands.status is Status.MISSING:
        return Run(seed, stands.status)
    described = _read_json(files.config)
    lines, _ = read_whole_lines(files.metrics)
    return Run(
        seed=seed,
        status=stands.status,
        reason=stands.reason,
        updates=stands.result.get("updates", lines[-1]["step"] if lines else 0),
        epochs=stands.result.get("epochs", lines[-1]["epoch"] if lines else 0.0),
        headline=stands.result.get("headline", ""),
        finals=_finals(stands),
        curves=_curves(lines),
        metrics=_metrics(stands),
        config=_config(described),
        machines=_read_json(files.machine) or [],
        explanation=_read_lines(files.explanation),
        validation_set=described.get("validation_set") or "",
        times=_times(lines),
        workdir=workdir,
    )


def _finals(stands: Standing) -> dict[str, float]:
    """Reads the final value of each metric; only a complete run's counts."""
    if stands.status is not Status.COMPLETE:
        return {}
    return {name: metric["final"] for name, metric in stands.result.get("metrics", {}).items()}


def _metrics(stands: Standing) -> dict[str, Metric]:
    """Reads what is known of the metrics of evaluations."""
    return {
        name: Metric(metric["words"], metric["unit"], metric["rises"])
        for name, metric in stands.result.get("metrics", {}).items()
    }


def _curves(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    names = dict.fromkeys(name for line in lines for name in line)
    curves = {}
    for name in sorted(names.keys() - {*TIMES, *CLOCKS}):
        points: Sequence[tuple[float, float | None]] = training_means(lines, name)
        if name.startswith("val_"):
            points = [(line["epoch"], line[name]) for line in lines if name in line]
        if points:
            curves[name] = Curve(*np.array(points, np.float64).T)
    return curves


def _times(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Takes medians over the later half, where all is compiled and the pipeline is full."""
    found = {name: [v for line in lines if (v := line.get(name)) is not None] for name in TIMES}
    return {name: statistics.median(all_[len(all_) // 2 :]) for name, all_ in found.items() if all_}


def _config(described: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens the resolved config of a config.json."""
    import ml_collections

    found = described.get("config")
    return dict(flatten(ml_collections.ConfigDict(found))) if isinstance(found, dict) else {}


def _read_json(path: AnyPath) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # as of a run that is just beginning
        return {}


def _read_lines(path: AnyPath) -> tuple[str, ...]:
    try:
        return tuple(path.read_text().splitlines())
    except (OSError, ValueError):
        return ()


def combine(parts: Sequence[Results], metric: str = "") -> Results:
    """Joins results into one table.

    Rows of the same name get that of their folder before it, and where that is the same a number.

    Args:
      metric: of evaluations, that the table is about; by default that of the first sweep.
    """
    joined = parts[0] if len(parts) == 1 else _join(parts)
    settings = dataclasses.replace(joined.settings, metric=metric or joined.settings.metric)
    return dataclasses.replace(joined, settings=settings)


def _join(parts: Sequence[Results]) -> Results:
    taken = Counter(row.name for part in parts for row in part.rows)
    twice = {name for name, count in taken.items() if count > 1}
    given: Counter[str] = Counter()
    renamed = [_renamed(part, _names(part, twice, given)) for part in parts]
    first = next((part.settings for part in renamed if len(part.rows) > 1), renamed[0].settings)
    columns = dict.fromkeys(key for part in renamed for key in part.settings.columns)
    overlays = tuple(rows for part in renamed for rows in part.settings.overlays)
    return Results(
        ", ".join(dict.fromkeys(part.title for part in renamed)),
        tuple(dict.fromkeys(file for part in renamed for file in part.files)),
        tuple(row for part in renamed for row in part.rows),
        dataclasses.replace(first, columns=tuple(columns), overlays=overlays),
    )


def _names(part: Results, twice: set[str], given: Counter[str]) -> dict[str, str]:
    """Finds names for rows that no other has, and counts those that were given."""
    names = {}
    for row in part.rows:
        name = f"{part.title}: {row.name}" if row.name in twice else row.name
        given[name] += 1
        names[row.name] = f"{name} ({given[name]})" if given[name] > 1 else name
    return names


def _renamed(part: Results, names: Mapping[str, str]) -> Results:
    settings = dataclasses.replace(
        part.settings,
        baseline=names[part.baseline.name],
        overlays=tuple(tuple(names[name] for name in rows) for rows in part.settings.overlays),
    )
    rows = tuple(row._replace(name=names[row.name]) for row in part.rows)
    return dataclasses.replace(part, rows=rows, settings=settings)
