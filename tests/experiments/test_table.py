"""The table in the paper's form: means by hand, and every run that is in none of them is said."""

import made_up
import pytest

from lbsgd.experiments import load
from lbsgd.experiments.loading import combine
from lbsgd.experiments.outcome import Status
from lbsgd.experiments.results import RowResults, Run
from lbsgd.experiments.table import differing, lines, markdown, short_names, show

ODD = "**a | b <script> *c* `d` [e](f)**"
ROWS = {
    "kn=64": {"batch_size": 64},
    "kn=256": {"batch_size": 256, "learning_rate.warmup": "none"},
    ODD: {"batch_size": 512},
}
FINALS = {"kn=64": [23.44, 23.55, 23.60, 23.66, 23.75], "kn=256": [24.40, 24.66, 24.80]}


@pytest.fixture
def results(tmp_path):
    sweep = made_up.sweep_of(ROWS, seeds=5, columns=("batch_size", "learning_rate.warmup"))
    folder = made_up.begin(sweep, tmp_path / "x")
    for name, finals in FINALS.items():
        for seed, final in enumerate(finals):
            made_up.write_run(sweep, folder, name, seed, [90.0, *[final] * 5])
    made_up.write_run(sweep, folder, "kn=256", 3, [90.0, None], ends="loss is not finite")
    made_up.write_run(sweep, folder, "kn=256", 4, [90.0, 80.0, None], ends="loss is not finite")
    return load(folder.path)


def test_lines_are_those_of_the_paper(results):
    base, other, odd = ([*line.cells.values()] for line in lines(results))
    assert [*lines(results)[0].cells] == [
        "row", "batch_size", "warmup", "n", "updates", "epochs", "validation error %",
        "difference to kn=64",
    ]  # fmt: skip
    assert base == ["kn=64", "64", "gradual", "5", "60", "6", "23.60 ± 0.12", "baseline"]
    count = "3 (2 of 5 diverged)"
    assert other[:7] == ["kn=256", "256", "none", count, "60", "6", "24.62 ± 0.20"]
    assert other[7].startswith("+1.02, p = 0.00")
    assert odd == [ODD, "512", "", "0 (5 of 5 missing)", "", "", "missing", ""]


def test_an_option_is_a_column_as_keys_are(tmp_path):
    """Whether it is set by itself or with all options, and before the run has begun too."""
    rows = {
        "whole": {"task.options": {"factor": 8.0}},
        "single": {"task.options.factor": 4.0},
        "not begun": {"task.options.factor": 2.0},
        "none": {},
    }
    sweep = made_up.sweep_of(rows, seeds=1, columns=("task.options.factor",))
    folder = made_up.begin(sweep, tmp_path / "x")
    for name in ("whole", "single", "none"):
        made_up.write_run(sweep, folder, name, 0, [9.0])
    found = [line.cells["factor"] for line in lines(load(folder.path))]
    assert found == ["8", "4", "2", ""]


def test_what_is_no_result_is_in_no_mean(results):
    mean = sum(FINALS["kn=256"]) / 3
    assert lines(results)[1].keys["validation error %"] == pytest.approx(mean)


def test_markdown_has_a_cell_for_each_column(results):
    rows = [line for line in markdown(results).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(ROWS)
    assert {line.replace("\\|", "").count("|") for line in rows} == {9}
    assert len({len(line) for line in rows}) == 1
    assert rows[3].rstrip(" |").endswith("**")  # it is significant


def test_markdown_says_what_is_in_no_mean_and_where_it_was_run(results):
    text = markdown(results)
    assert "- kn=256: diverged (seeds 3, 4): loss is not finite" in text
    assert "missing (seeds 0 to 4)" in text
    assert "commit 29c466394d; seeds 0 to 4." in text
    assert "<script>" not in text
    assert "*c*" not in text.replace("\\*c\\*", "")


def test_single_runs_show_what_differs(results, tmp_path):
    folders = [tmp_path / "x" / "kn=64" / f"seed_{i}" for i in (0, 1)]
    other = tmp_path / "x" / "kn=256" / "seed_0"
    found = lines(combine([load(path) for path in (*folders, other)]))
    assert [*found[0].cells][:3] == ["row", "batch_size", "warmup"]
    assert [line.cells["row"] for line in found] == [
        "kn=64, seed 0", "kn=64, seed 1", "kn=256, seed 0"
    ]  # fmt: skip


def test_a_key_that_only_one_config_has_differs():
    """As where a run is of another version."""
    configs = ({"batch_size": 64}, {"batch_size": 64, "new": 1})
    runs = [Run(0, Status.COMPLETE, config=config) for config in configs]
    rows = [RowResults(str(i), {}, (run,)) for i, run in enumerate(runs)]
    assert differing(rows) == differing(rows[::-1]) == ["new"]


def test_a_sweep_that_has_not_begun_has_a_table(tmp_path):
    made_up.begin(made_up.sweep_of(ROWS, seeds=2), tmp_path)
    assert "No run has come to a result yet." in markdown(load(tmp_path))
    assert "2 of 2 missing" in markdown(load(tmp_path))


def test_keys_are_short_where_they_can_be():
    keys = ["batch_size", "learning_rate.warmup", "ema.warmup", "optimizer.name"]
    assert list(short_names(keys).values()) == [
        "batch_size", "learning_rate.warmup", "ema.warmup", "name"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (0.1, "0.1"),
        (1e-4, "0.0001"),
        ([30.0, 60.0], "30, 60"),
        ((), "()"),
        (True, "True"),
        ("x\ny", "x y"),
    ],
)
def test_values_are_cells(value, cell):
    assert show(value) == cell
