"""Points that are tried, and the best of them."""

import dataclasses
import json
import math

import pytest
from tiny_sweep import write_sweep

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import note_failure
from lbsgd.experiments.sweep import read_sweep
from lbsgd.experiments.tuning import best, points
from lbsgd.system.errors import ConfigError

RATE, DECAY, EPOCHS = (
    "learning_rate.reference_learning_rate",
    "optimizer.weight_decay",
    "total_steps",
)
ROWS = {"tuned": {}, "other": {"optimizer.momentum": 0.8}}
RANGES = {RATE: (0.01, 10.0, "log"), DECAY: (0.0, 1e-3, "linear"), EPOCHS: (1, 4, "linear")}


@pytest.fixture
def tuned(tmp_path):
    def tuned(number=64, tune=RANGES, name="tiny.py", metric=""):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        words = f"tune={tune!r}, tune_points={number}, tune_metric={metric!r}"
        return read_sweep(write_sweep(tmp_path / name, ROWS, settings=words))

    return tuned


def drawn(sweep):
    return points(sweep.file, sweep.settings)


def test_more_points_keep_those_before_them(tuned):
    assert drawn(tuned(64))[:7] == drawn(tuned(7))


def test_points_are_the_same_by_name_and_by_path(tuned):
    settings = tuned(7).settings
    found = points("configs/ablations/goyal_table1.py:mini", settings)
    assert points("goyal_table1:mini", settings) == found
    assert points("ablations/goyal_table1", settings) == found
    assert points("goyal_table2a", settings) != found


def test_points_lie_within_their_ranges_and_fill_them_evenly(tuned):
    found = drawn(tuned(64))
    for key, (least, most, _) in RANGES.items():
        assert all(least <= point[key] <= most for point in found)
    # Of 64 points of a sequence of base 2, 3 or 5 each quarter of a range has 16, or few less.
    logs = [(math.log(point[RATE]) - math.log(0.01)) / math.log(1000) for point in found]
    linear = [point[DECAY] / 1e-3 for point in found]
    for shares in (logs, linear):
        counts = [sum(i / 4 <= share < (i + 1) / 4 for share in shares) for i in range(4)]
        assert min(counts) >= 13, counts


def test_whole_numbers_are_whole(tuned):
    found = [point[EPOCHS] for point in drawn(tuned(64))]
    assert set(found) == {1, 2, 3, 4}
    assert all(type(number) is int for number in found)


def test_points_follow_from_the_name_of_the_file_and_the_keys(tuned):
    """Not from where it lies, nor from the order of the keys."""
    there = drawn(tuned())
    assert drawn(tuned(name="elsewhere/tiny.py")) == there
    assert drawn(tuned(tune=dict(reversed(RANGES.items())))) == there
    assert drawn(tuned(name="other.py")) != there
    assert [point[RATE] for point in drawn(tuned(tune={RATE: RANGES[RATE]}))] != [
        point[RATE] for point in there
    ]


def test_nothing_is_drawn_where_nothing_is_tuned(tuned):
    assert drawn(tuned(tune={})) == []


# The best


def finish(workdir, error, loss, **more):
    workdir.mkdir(parents=True)
    metrics = {
        "val_error": {"final": error, "unit": "%", "rises": False, "words": "error"},
        "val_loss": {"final": loss, "unit": "", "rises": False, "words": "loss"},
        "val_kappa": {"final": -error, "unit": "", "rises": True, "words": "kappa"},
    }
    result = {"complete": True, "headline": "val_error", "metrics": metrics, **more}
    (workdir / "result.json").write_text(json.dumps(result))


def tried(sweep, folder):
    """Of five points 1 and 3 are best by their error, 4 by its loss; 0 diverged and 2 failed."""
    row = sweep.rows[0]
    diverged = {"complete": False, "diverged": "the loss is not finite"}
    finish(folder.point(row, 0), 0.0, 0.0, **diverged)
    note_failure(folder.point(row, 2), "the disk was full")
    for point, error, loss in ((1, 10.0, 0.3), (3, 10.0, 0.2), (4, 11.0, 0.1)):
        finish(folder.point(row, point), error, loss)
    folder.describe(sweep)
    return row


@pytest.mark.parametrize(
    ("metric", "point"), [("", 1), ("val_error", 1), ("val_loss", 4), ("val_kappa", 1)]
)
def test_best_point_is_the_first_of_the_best(tuned, tmp_path, metric, point):
    sweep, folder = tuned(6, metric=metric), SweepFolder(tmp_path / "runs")
    row = tried(sweep, folder)
    assert best(folder, row) == best(folder, row, sweep) == (point, drawn(sweep)[point], 5)


def test_point_that_was_never_evaluated_is_not_the_best(tuned, tmp_path):
    sweep, folder = tuned(6), SweepFolder(tmp_path / "runs")
    row = tried(sweep, folder)
    finish(folder.point(row, 5), 0.0, 0.0, metrics={})
    assert best(folder, row).point == 1


def test_no_point_is_the_best_before_one_is_complete(tuned, tmp_path):
    sweep, folder = tuned(3), SweepFolder(tmp_path / "runs")
    folder.describe(sweep)
    assert best(folder, sweep.rows[0]) is None


def test_unknown_metric_names_those_there_are(tuned, tmp_path):
    sweep, folder = tuned(6, metric="val_eror"), SweepFolder(tmp_path / "runs")
    row = tried(sweep, folder)
    with pytest.raises(ConfigError, match=r"val_eror.*val_error, val_loss, val_kappa"):
        best(folder, row)


def test_points_of_the_folder_are_those_of_its_settings(tuned, tmp_path):
    """Also where the file says something else by now."""
    sweep, folder = tuned(6), SweepFolder(tmp_path / "runs")
    row = tried(sweep, folder)
    fewer = dataclasses.replace(sweep, settings=dataclasses.replace(sweep.settings, tune_points=1))
    assert best(folder, row, fewer) is None
    assert best(folder, row).point == 1
