"""Tuning: the points that are tried for each row, and which of them is the best.

The points are a scrambled Halton sequence, the same for all rows: it fills the ranges evenly
however many are taken, and more points leave those before them where they are. Each is run once,
with a seed that no row is reported with. The best one's values are then those of the row, whose
runs with the seeds 0, 1, ... are new.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import ENDED, Status, standing
from lbsgd.experiments.settings import Settings
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.run.config import KEYS
from lbsgd.run.config_file import split_variant
from lbsgd.system.errors import ConfigError

# Of the runs that try points; no row has so many seeds.
TUNING_SEED = 1_000_000


class Point(NamedTuple):
    """Holds a point of a row.

    Attributes:
      values: by dotted key of the config.
      status: how its run stands.
      final: its final value of the metric that rows are tuned by; None where it has none.
    """

    values: dict[str, Any]
    status: Status
    final: float | None


class Best(NamedTuple):
    """Holds the best of the points that were tried for a row.

    Attributes:
      point: its index.
      values: by dotted key of the config.
      tried: how many points were tried, those that diverged or failed among them.
    """

    point: int
    values: dict[str, Any]
    tried: int


def points(file: str, settings: Settings) -> list[dict[str, Any]]:
    """Draws the points of a sweep, each the values of the tuned keys.

    They depend on the name of its file and on the tuned keys: adding points keeps the others, and
    so does moving the file. Keys that are whole numbers are rounded.

    Args:
      file: path[:variant] of the config file.
      settings: say what is tuned.
    """
    if not settings.tune:
        return []
    from scipy.stats import qmc  # slow to import

    keys = sorted(settings.tune)
    name = json.dumps([split_variant(file)[0].stem, *keys])
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    unit = qmc.Halton(len(keys), scramble=True, seed=key).random(settings.tune_points)
    return [
        {key: _scaled(key, float(x), *settings.tune[key]) for key, x in zip(keys, row)}
        for row in unit
    ]


def _scaled(key: str, x: float, least: float, most: float, scale: str) -> float | int:
    """Maps a number in [0, 1) into the range of a key."""
    if scale == "log":
        value = math.exp(math.log(least) + x * (math.log(most) - math.log(least)))
    else:
        value = least + x * (most - least)
    value = min(max(value, least), most)  # rounding may have led past an end
    return round(value) if isinstance(KEYS[key].default, int) else float(value)


def points_of(folder: SweepFolder, row: Row) -> list[Point]:
    """Reads what came of the points of a row, by what the folder says of the sweep.

    Raises:
      ConfigError: there is no such metric as the one that the sweep is tuned by.
    """
    said = folder.read()
    found = []
    for i, values in enumerate(points(said.file, said.settings)):
        stands = standing(folder.point(row, i))
        final = None
        if stands.status is Status.COMPLETE:
            final = _of_metric(stands.result, said.settings.tune_metric).get("final")
        found.append(Point(values, stands.status, final))
    return found


def best(folder: SweepFolder, row: Row, sweep: Sweep | None = None) -> Best | None:
    """Finds the best of the points that were tried for a row, by the folders of their runs.

    Of points that are alike the first counts; one that diverged or failed is none of them.

    Args:
      sweep: says what was tried; by default what the folder says of it.

    Returns:
      None if no point is complete.

    Raises:
      ConfigError: there is no such metric as the one that the sweep is tuned by.
    """
    said = sweep or folder.read()
    settings = said.settings
    found = [standing(folder.point(row, i)) for i in range(settings.tune_points)]
    tried = sum(run.status in ENDED for run in found)
    scores = {
        i: _score(run.result, settings.tune_metric)
        for i, run in enumerate(found)
        if run.status == Status.COMPLETE
    }
    finite = {i: score for i, score in scores.items() if score is not None}
    if not finite:
        return None
    point = min(finite, key=lambda i: (finite[i], i))
    return Best(point, points(said.file, settings)[point], tried)


def _score(result: Mapping[str, Any], metric: str) -> float | None:
    """Reads how good a complete run is by a metric: less is better; None if that is unknown."""
    found = _of_metric(result, metric)
    if not found:
        return None
    return -found["final"] if found["rises"] else found["final"]


def _of_metric(result: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """Reads the final value of a metric and what is known of it: {} where there is none."""
    found = result.get("metrics", {})
    if metric and found and metric not in found:
        raise ConfigError(
            f"Settings: tune_metric={metric!r} is no metric of evaluations: {', '.join(found)}"
        )
    of_metric: Mapping[str, Any] = found.get(metric or result.get("headline"), {})
    return of_metric
