"""Results are read from folders as the runs left them, and from the file that a report wrote."""

import dataclasses
import json
import subprocess
import sys

import made_up
import numpy as np
import pytest

from lbsgd.experiments import Settings, load
from lbsgd.experiments.html import page
from lbsgd.experiments.loading import combine
from lbsgd.experiments.outcome import Status
from lbsgd.experiments.table import markdown
from lbsgd.system.errors import ConfigError

ROWS = {"kn=64": {"batch_size": 64}, "kn=256": {"batch_size": 256}}


NO_ROWS = json.dumps(
    {"rows": [], "files": [], "times": {}, "settings": dataclasses.asdict(Settings())}
)


@pytest.fixture
def sweep():
    return made_up.sweep_of(ROWS, seeds=2, columns=("batch_size",))


@pytest.fixture
def folder(sweep, tmp_path):
    return made_up.begin(sweep, tmp_path / "x")


def test_a_run_is_read(sweep, folder):
    errors = [80.0, 40.0, 20.0, 9.0, 8.0, 7.0, 10.0]
    made_up.write_run(sweep, folder, "kn=64", 0, errors)
    row = load(folder.path).row("kn=64")
    run = row.runs[0]
    assert (run.status, run.updates, run.epochs) == (Status.COMPLETE, 70, 7.0)
    assert run.finals == {"val_error": 9.0, "val_loss": 9.0 / 40}
    assert run.curves["val_error"].values.tolist() == errors
    assert run.curves["val_error"].epochs.tolist() == [1, 2, 3, 4, 5, 6, 7]
    # Ten updates an epoch, all of them alike.
    assert run.curves["train_error"].values == pytest.approx(np.array(errors) - 5)
    assert run.config["batch_size"] == 64
    assert run.config["data.source"] == "digits"
    assert run.machines[-1]["git_commit"].startswith("29c46")
    assert run.explanation[0] == "minibatch: kn=64"
    assert run.times == {"images_per_second": 100.0, "data_wait_percent": 0.5}


@pytest.fixture(scope="module")
def table1(tmp_path_factory):
    return made_up.goyal_table1(tmp_path_factory.mktemp("sweep")).path


def test_every_way_a_run_can_stand_is_a_run_of_its_row(table1):
    found = [[run.status.value for run in row.runs] for row in load(table1).rows]
    complete = "complete"
    assert found == [
        [complete] * 5,
        [complete] * 3 + ["diverged", complete],
        [complete] * 4 + ["missing"],
        [complete] * 4 + ["unfinished"],
        [complete, "failed"] + ["missing"] * 3,
        ["diverged"] * 5,
    ]


@pytest.mark.parametrize("ends", ["unfinished", "loss is not finite"])
def test_only_a_complete_run_has_a_final_value(sweep, folder, ends):
    made_up.write_run(sweep, folder, "kn=64", 0, [9.0] * 6, ends=ends)
    made_up.write_run(sweep, folder, "kn=64", 1, [7.0] * 6)
    row = load(folder.path).row("kn=64")
    assert row.finals("val_error").tolist() == [7.0]
    assert row.curve("val_error").values.tolist() == [7.0] * 6


def test_more_seeds_than_the_sweep_asks_for_count(sweep, folder):
    for seed in (0, 1, 4):
        made_up.write_run(sweep, folder, "kn=64", seed, [float(seed)] * 6)
    (folder.path / "kn=64" / "tune_7").mkdir()
    assert [run.seed for run in load(folder.path).row("kn=64").runs] == [0, 1, 4]


def test_the_tuned_point_is_that_of_the_runs(tmp_path):
    """The runs that tried points are none of the row's."""
    key = "learning_rate.reference_learning_rate"
    sweep = made_up.sweep_of(ROWS, seeds=1, tune={key: (0.05, 0.5, "log")}, tune_points=3)
    folder = made_up.begin(sweep, tmp_path)
    for point in (1, 2):
        made_up.write_run(sweep, folder, "kn=64", 0, [point] * 6).rename(
            tmp_path / "kn=64" / f"tune_{point}"
        )
    before = load(tmp_path).row("kn=64")
    assert before.tuned.tried == 2
    assert 0.05 <= before.tuned.values[key] <= 0.5
    assert len(before.finals("val_error")) == 0
    points = [(point["status"], point["final"]) for point in before.tuned.points]
    assert points == [("missing", None), ("complete", 1.0), ("complete", 2.0)]
    assert before.tuned.points[1]["values"] == before.tuned.values
    load(tmp_path).write(tmp_path / "kept.json")
    assert load(tmp_path / "kept.json").row("kn=64").tuned == before.tuned
    assert f"{key} = {before.tuned.values[key]:g}: 1.0000" in page(load(tmp_path))
    made_up.write_run(sweep, folder, "kn=64", 0, [9.0] * 6)
    after = load(tmp_path).row("kn=64")
    assert after.tuned.values == {key: 0.1}  # which the made-up run has
    said = f"Tuned with a seed of its own: kn=64: {key}=0.1, the best of 2 points tried."
    assert said in markdown(load(tmp_path)).replace("\\", "")
    assert after.finals("val_error").tolist() == [9.0]
    assert load(tmp_path).row("kn=256").tuned is None


def test_curves_are_means_over_the_runs_that_got_there(sweep, folder):
    made_up.write_run(sweep, folder, "kn=64", 0, [80.0, 40.0, 10.0])
    made_up.write_run(sweep, folder, "kn=64", 1, [60.0, 20.0])
    row = load(folder.path).row("kn=64")
    assert row.curve("val_error").values.tolist() == [70.0, 30.0, 10.0]
    assert row.spread("val_error").values == pytest.approx([200**0.5, 200**0.5, 0.0])


def test_curves_go_by_the_order_of_evaluations_and_not_by_their_epochs(sweep, folder):
    """Seeds that hold out images of their own have epochs of other lengths."""
    for seed, step in ((0, 10), (1, 11)):
        workdir = made_up.write_run(sweep, folder, "kn=64", seed, [80.0 - 20 * seed] * 3)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        moved = [json.dumps({**line, "epoch": line["epoch"] * step / 10}) for line in found]
        (workdir / "metrics.jsonl").write_text("\n".join(moved) + "\n")
    row = load(folder.path).row("kn=64")
    one, other = (run.curves["val_error"].epochs for run in row.runs[:2])
    assert (one != other).all()
    curve = row.curve("val_error")
    assert curve.values.tolist() == [70.0] * 3
    assert curve.epochs == pytest.approx((one + other) / 2)


def test_what_is_not_finite_is_a_gap(sweep, folder, tmp_path):
    made_up.write_run(sweep, folder, "kn=64", 0, [80.0, None, 40.0, 30.0])
    results = load(folder.path)
    assert np.isnan(results.rows[0].curve("val_error").values).tolist() == [0, 1, 0, 0]
    results.write(tmp_path / "results.json")
    assert "NaN" not in (tmp_path / "results.json").read_text()
    again = load(tmp_path / "results.json")
    assert np.isnan(again.rows[0].curve("val_error").values).tolist() == [0, 1, 0, 0]


def test_results_are_read_as_they_were_written(table1, tmp_path):
    results = load(table1)
    results.write(tmp_path / "one.json")
    again = load(tmp_path / "one.json")
    again.write(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert markdown(again) == markdown(results)


def test_results_say_nothing_of_when_and_where(sweep, tmp_path, monkeypatch):
    """But under "times": another folder, at another speed, is the same file."""
    written = []
    for name, speed in (("x", "100.0"), ("somewhere/else", "7.0")):
        folder = made_up.begin(sweep, tmp_path / name)
        workdir = made_up.write_run(sweep, folder, "kn=64", 0, [9.0] * 6)
        text = (workdir / "metrics.jsonl").read_text()
        faster = text.replace('second": 100.0', f'second": {speed}')
        (workdir / "metrics.jsonl").write_text(faster)
        path = tmp_path / f"{len(written)}.json"
        load(folder.path).write(path)
        written.append(json.loads(path.read_text()))
    times = [found.pop("times") for found in written]
    assert times[0] != times[1]
    assert written[0] == written[1]


def test_times_are_medians_of_the_later_half(sweep, folder):
    workdir = made_up.write_run(sweep, folder, "kn=64", 0, [9.0])
    lines = [{"step": i, "epoch": 1.0, "images_per_second": float(i)} for i in range(10)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load(workdir).rows[0].runs[0].times == {"images_per_second": 7.0}


def test_a_row_and_a_run_of_a_sweep_are_read_alone(sweep, folder):
    made_up.write_run(sweep, folder, "kn=256", 1, [9.0] * 6)
    assert [row.name for row in load(folder.path / "kn=256").rows] == ["kn=256"]
    (row,) = load(folder.path / "kn=256" / "seed_1").rows
    assert row.name == "kn=256, seed 1"
    assert [run.seed for run in row.runs] == [1]


def test_rows_of_the_same_name_get_that_of_their_folder(sweep, tmp_path):
    folders = [made_up.begin(sweep, tmp_path / name) for name in ("x", "y", "of/y")]
    names = [row.name for row in combine([load(folder.path) for folder in folders]).rows]
    assert names[::2] == ["x: kn=64", "y: kn=64", "y: kn=64 (2)"]


def test_the_first_sweep_says_what_others_are_compared_with(sweep, tmp_path):
    """Also where single runs stand before it."""
    folder = made_up.begin(sweep, tmp_path / "x")
    made_up.write_run(sweep, folder, "kn=256", 1, [9.0] * 6)
    results = combine([load(folder.path / "kn=256" / "seed_1"), load(folder.path)])
    assert results.rows[0].name == "kn=256, seed 1"
    assert results.baseline.name == "kn=64"


def test_runs_of_different_tasks_have_no_common_metric(sweep, folder):
    for seed, headline in enumerate(("val_error", "val_mse")):
        workdir = made_up.write_run(sweep, folder, "kn=64", seed, [9.0] * 6)
        result = json.loads((workdir / "result.json").read_text())
        (workdir / "result.json").write_text(json.dumps({**result, "headline": headline}))
    with pytest.raises(ConfigError, match="different tasks"):
        _ = load(folder.path).metric


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"rows": 1}', "x" * 99, '{"rows": [], "files": []}', NO_ROWS]
)
def test_a_file_that_is_no_results_is_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match=r"is no results\.json"):
        load(tmp_path / "results.json")


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither the folder of a sweep nor the workdir"):
        load(tmp_path)


def test_a_run_that_is_just_beginning_is_read(sweep, folder):
    """Its files are there in part."""
    workdir = made_up.write_run(sweep, folder, "kn=64", 0, [9.0], ends="unfinished")
    (workdir / "machine.json").write_text("")
    (workdir / "explanation.txt").unlink()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "epo')
    run = load(folder.path).rows[0].runs[0]
    assert (run.status, run.updates, run.machines) == (Status.UNFINISHED, 10, [])


def test_importing_is_quick():
    """Neither jax nor anything that draws is imported with the package."""
    slow = "{'jax', 'matplotlib', 'plotly', 'scipy', 'pandas'}"
    code = f"import sys, lbsgd.experiments; assert not {slow} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
