"""The results of sweeps and of single runs: rows, their runs, and what each came to.

`lbsgd.experiments.load` reads them from folders, or from the file that `Results.write` wrote.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lbsgd.experiments.folder import settings_of
from lbsgd.experiments.outcome import Status
from lbsgd.experiments.settings import Settings
from lbsgd.run.target import OF_AVERAGE
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, replace_file


class Curve(NamedTuple):
    """Holds a metric over the epochs of a run, or its mean over those of several.

    Attributes:
      epochs: increasing, `[points]`.
      values: at them, `[points]`; nan where the metric was not finite.
    """

    epochs: np.ndarray
    values: np.ndarray


class Metric(NamedTuple):
    """Says how people write a metric, and which way it is better.

    Attributes:
      words: "validation error".
      unit: "%" or "".
      rises: whether more is better.
    """

    words: str
    unit: str = ""
    rises: bool = False

    def __str__(self) -> str:
        return f"{self.words} {self.unit}".strip()


class Run(NamedTuple):
    """Holds what came of a run.

    Attributes:
      seed: its seed.
      status: how it stands; only `COMPLETE` ones have `finals`.
      reason: why it diverged or failed; "" otherwise.
      updates: how many are done.
      epochs: how many are done, as a fraction.
      headline: the metric that its task is judged by, as `val_error`; "" where it is not known yet.
      finals: of each metric of evaluations the median over the final 5 epochs, by name.
      curves: metrics by name, as metrics.jsonl has them: those of evaluations at each of these,
        those of training averaged from one to the next.
      metrics: what is known of metrics of evaluations, by name.
      config: all keys of the resolved config, by dotted key.
      machines: versions, hardware and commit, of each machine that it was on.
      explanation: how its numbers follow from its config, a line each.
      validation_set: a fingerprint of it.
      times: medians over the later half of the run: `images_per_second`, `data_wait_percent`.
      workdir: where it is; None of a run from a results.json.
    """

    seed: int
    status: Status
    reason: str = ""
    updates: int = 0
    epochs: float = 0.0
    headline: str = ""
    finals: Mapping[str, float] = {}
    curves: Mapping[str, Curve] = {}
    metrics: Mapping[str, Metric] = {}
    config: Mapping[str, Any] = {}
    machines: Sequence[Mapping[str, Any]] = ()
    explanation: Sequence[str] = ()
    validation_set: str = ""
    times: Mapping[str, float] = {}
    workdir: AnyPath | None = None


class Tuned(NamedTuple):
    """Holds the point that a row's runs have.

    Attributes:
      values: by key of the config.
      tried: how many points were.
      points: all of them: the `values` of each, the `status` of its run, and its `final` value of
        the metric that rows are tuned by, or None.
    """

    values: Mapping[str, Any]
    tried: int
    points: Sequence[Mapping[str, Any]]


class RowResults(NamedTuple):
    """Holds the runs of a row.

    Attributes:
      name: as tables show it.
      overrides: what it sets, by key of the config; {} of a single run.
      runs: by seed, those that are still missing among them.
      tuned: None where nothing is tuned, or nothing is known yet.
    """

    name: str
    overrides: Mapping[str, Any]
    runs: tuple[Run, ...]
    tuned: Tuned | None = None

    def of(self, *statuses: Status) -> list[Run]:
        """Selects the runs that stand so."""
        return [run for run in self.runs if run.status in statuses]

    def finals(self, metric: str) -> np.ndarray:
        """Collects the final values of the complete runs: float64 `[n]`.

        Those that have no evaluation of the metric are left out, as are runs that diverged.
        """
        found = [run.finals[metric] for run in self.runs if metric in run.finals]
        return np.asarray(found, np.float64)

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved config of the first run that has begun, without the seed; {} if none has."""
        first: Mapping[str, Any] = next((run.config for run in self.runs if run.config), {})
        return {key: value for key, value in first.items() if key != "seed"}

    @property
    def explanation(self) -> Sequence[str]:
        """How the numbers of the first run that has begun follow from its config."""
        return next((run.explanation for run in self.runs if run.explanation), ())

    def drawn(self) -> list[Run]:
        """Selects the runs whose curves stand for the row: the complete ones, if there are any."""
        complete = self.of(Status.COMPLETE)
        return complete or [run for run in self.runs if run.curves]

    def curve(self, metric: str) -> Curve:
        """Averages a metric over `drawn` runs: at each point the mean of those that got there."""
        return self._over_runs(metric, np.mean)

    def spread(self, metric: str) -> Curve:
        """Computes the standard deviation beside `curve`; 0 where there is but one run."""
        return self._over_runs(metric, lambda v: np.std(v, ddof=1) if len(v) > 1 else 0.0)

    def _over_runs(self, metric: str, reduce: Any) -> Curve:
        curves = [run.curves[metric] for run in self.drawn() if metric in run.curves]
        most = max((len(curve.epochs) for curve in curves), default=0)
        # By their order and not by the epoch: where the seed decides which images are held out,
        # an epoch has another number of updates for each, and so falls elsewhere.
        at = [[curve for curve in curves if len(curve.epochs) > i] for i in range(most)]
        epochs = [np.mean([curve.epochs[i] for curve in there]) for i, there in enumerate(at)]
        values = [reduce([curve.values[i] for curve in there]) for i, there in enumerate(at)]
        return Curve(np.array(epochs), np.array(values))

    @property
    def own_validation_sets(self) -> bool:
        """Tells whether runs of the row are judged by validation sets that differ."""
        return len({run.validation_set for run in self.runs if run.validation_set}) > 1


@dataclasses.dataclass(frozen=True)
class Results:
    """Holds the rows of a sweep, of single runs, or of several of these.

    Attributes:
      title: the names of their folders.
      files: the config files, as they were named on the command line.
      rows: in order, with different names.
      settings: what a report shows, and how often each row is to be run.
    """

    title: str
    files: tuple[str, ...]
    rows: tuple[RowResults, ...]
    settings: Settings

    def row(self, name: str) -> RowResults:
        """Finds a row.

        Raises:
          ConfigError: there is none of this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(
            f"{self.title} has no row {name!r}; it has {', '.join(row.name for row in self.rows)}"
        )

    @functools.cached_property
    def metric(self) -> str:
        """The metric that the report is about, as `val_error`; "" before any run says its own.

        Raises:
          ConfigError: runs are of tasks that are judged by different metrics, or no run has the
            one that the settings name.
        """
        if self.settings.metric:
            return self._known(self.settings.metric)
        found = {run.headline: row.name for row in self.rows for run in row.runs if run.headline}
        if len(found) > 1:
            said = ", ".join(f"{row} by {metric}" for metric, row in found.items())
            raise ConfigError(f"these runs are of different tasks and cannot be compared: {said}")
        return next(iter(found), "") or self._first_evaluated()

    def _known(self, metric: str) -> str:
        names = sorted({name for run in self.runs() for name in run.finals})
        if names and metric not in names:
            raise ConfigError(f"no run has the metric {metric!r}; they have {', '.join(names)}")
        return metric

    def _first_evaluated(self) -> str:
        """Guesses what runs are judged by that have not said it yet: no loss, and a short name."""
        names = {name for run in self.runs() for name in run.curves if name.startswith("val_")}
        return min(names, key=lambda name: (name == "val_loss", len(name), name), default="")

    @property
    def baseline(self) -> RowResults:
        """The row that others are compared with."""
        return self.row(self.settings.baseline) if self.settings.baseline else self.rows[0]

    def describe(self, metric: str) -> Metric:
        """Says how people write a metric."""
        of_training = metric.startswith("train_")
        base = metric.removeprefix("train_").removeprefix("val_")
        found = next(
            (run.metrics[f"val_{base}"] for run in self.runs() if f"val_{base}" in run.metrics),
            Metric(base.replace("_", " ")),
        )
        set_ = "training " if of_training else "validation " if metric.startswith("val_") else ""
        averaged = " of averaged weights" if base.endswith(OF_AVERAGE) else ""
        return found._replace(words=set_ + found.words + averaged)

    def runs(self) -> list[Run]:
        """Lists the runs of all rows."""
        return [run for row in self.rows for run in row.runs]

    def write(self, path: AnyPath) -> None:
        """Writes results.json, which `load` reads.

        It says nothing of when and where: a sweep that was killed and resumed has the same file as
        one that was not, but for its "times".

        Raises:
          OSError: it cannot be written.
        """
        times = {
            f"{row.name}, seed {run.seed}": dict(run.times)
            for row in self.rows
            for run in row.runs
            if run.times
        }
        parts = {
            "files": list(self.files),
            "settings": dataclasses.asdict(self.settings),
            "rows": [_row_to_json(row) for row in self.rows],
            "times": times,
        }
        # A line for each row: legible enough for a diff, and not a line for each number.
        rows = ",\n".join(_dumps(row) for row in parts.pop("rows"))
        rest = ",\n".join(f"{_dumps(name)}: {_dumps(part)}" for name, part in parts.items())
        replace_file(path, f'{{{rest},\n"rows": [\n{rows}\n]}}\n')


def _dumps(part: Any) -> str:
    return json.dumps(part, allow_nan=False)


def _row_to_json(row: RowResults) -> dict[str, Any]:
    return {
        "name": row.name,
        "overrides": dict(row.overrides),
        "tuned": row.tuned._asdict() if row.tuned else None,
        "runs": [_run_to_json(run) for run in row.runs],
    }


def _run_to_json(run: Run) -> dict[str, Any]:
    curves = {
        name: {"epochs": curve.epochs.tolist(), "values": _without_nan(curve.values)}
        for name, curve in run.curves.items()
    }
    metrics = {name: metric._asdict() for name, metric in run.metrics.items()}
    found = {**run._asdict(), "curves": curves, "metrics": metrics}
    return {name: value for name, value in found.items() if name not in ("times", "workdir")}


def _without_nan(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def read_results(path: AnyPath) -> Results:
    """Reads what `Results.write` wrote.

    Raises:
      ConfigError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text())
        rows = tuple(_row_from_json(row, found["times"]) for row in found["rows"])
        if not rows:
            raise ValueError("no rows")
        return Results(
            path.parent.name, tuple(found["files"]), rows, settings_of(found["settings"])
        )
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is no results.json of a report ({error!r})") from error


def _row_from_json(found: Mapping[str, Any], times: Mapping[str, Any]) -> RowResults:
    tuned = Tuned(**found["tuned"]) if found["tuned"] else None
    runs = tuple(
        _run_from_json(run, times.get(f"{found['name']}, seed {run['seed']}", {}))
        for run in found["runs"]
    )
    return RowResults(found["name"], found["overrides"], runs, tuned)


def _run_from_json(found: Mapping[str, Any], times: Mapping[str, float]) -> Run:
    curves = {
        name: Curve(np.array(curve["epochs"], np.float64), np.array(curve["values"], np.float64))
        for name, curve in found["curves"].items()
    }
    metrics = {name: Metric(**metric) for name, metric in found["metrics"].items()}
    status = Status(found["status"])
    return Run(**{**found, "curves": curves, "metrics": metrics, "status": status, "times": times})
