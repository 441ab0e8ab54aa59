"""Runs that a folder holds are those of its sweep."""

import json

import pytest
from tiny_sweep import ROWS, write_sweep

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.running.claim import check_row
from lbsgd.experiments.running.session import run_sweep
from lbsgd.experiments.sweep import read_sweep
from lbsgd.experiments.tuning import points
from lbsgd.system.errors import ConfigError

RATE = "learning_rate.reference_learning_rate"
TUNED = 'seeds=2, tune={"optimizer.weight_decay": (0.1, 1.0, "log")}, tune_points='


@pytest.fixture
def read(tmp_path):
    def read(rows=ROWS, flags=(), **more):
        return read_sweep(write_sweep(tmp_path / "tiny.py", rows, **more), flags)

    return read


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "runs")


def begin(workdir, config):
    """Has a workdir hold a run that got somewhere."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    (workdir / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1}\n')


def changed(**overrides):
    return {**ROWS, "rate=0.1": {**ROWS["rate=0.1"], **overrides}}


def test_runs_of_the_same_config_are_the_sweeps(read, folder):
    sweep = read()
    for row in sweep.rows:
        begin(folder.seed(row, 0), sweep.config(row, 0))
        check_row(sweep, folder, row)


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("batch_size", 64, False),
        (RATE, 0.3, False),
        ("model.name", "cifar_resnet20", False),
        ("log.every_steps", 7, True),  # says nothing of what is computed
        ("checkpoint.keep", 1, True),
        ("optimizer.trust_coefficient", 0.1, True),  # has no effect without LARS
        ("learning_rate.warmup_epochs", 0.0, True),
    ],
)
def test_a_row_that_changed_is_told_by_what_differs(read, folder, key, value, same):
    before, after = read(), read(changed(**{key: value}))
    begin(folder.seed(before.rows[0], 1), before.config(before.rows[0], 1))
    if same:
        check_row(after, folder, after.rows[0])
        return
    with pytest.raises(ConfigError, match=rf"row 'rate=0.1': \S*seed_1 .* differs in {key} \("):
        check_row(after, folder, after.rows[0])


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("key", "there", "here"),
    [
        ("stop_at", (), ("val_error", 9.0)),
        ("stop_at", ("val_error", 9.0), ()),
        ("init_from", "", "runs/a"),
        ("init_from", "runs/a", "runs/b"),
    ],
)
def test_what_has_come_to_another_target_or_from_other_weights_is_no_result_of_the_row(
    read, folder, complete, key, there, here
):
    """A run that is still going can go on to the new target, and looks at its weights itself."""
    before, after = read(changed(**{key: there})), read(changed(**{key: here}))
    workdir, config = folder.seed(before.rows[0], 0), before.config(before.rows[0], 0)
    begin(workdir, config)
    if not complete:
        check_row(after, folder, after.rows[0])
        return
    (workdir / "result.json").write_text('{"complete": true}')
    check_row(before, folder, before.rows[0])
    with pytest.raises(ConfigError, match=rf"seed_0 .* differs in {key}"):
        check_row(after, folder, after.rows[0])


def test_a_flag_that_changes_all_rows_is_told_too(read, folder):
    before, after = read(), read(flags=["--config.batch_size=64"])
    begin(folder.seed(before.rows[1], 0), before.config(before.rows[1], 0))
    check_row(after, folder, after.rows[0])  # which has no runs
    with pytest.raises(ConfigError, match=r"batch_size \(32 there, 64 here\)"):
        check_row(after, folder, after.rows[1])


def test_seeds_beyond_those_asked_for_are_looked_at_too(read, folder):
    before, after = read(), read(changed(batch_size=64))
    begin(folder.seed(before.rows[0], 7), before.config(before.rows[0], 7))
    with pytest.raises(ConfigError, match="seed_7"):
        check_row(after, folder, after.rows[0])


def test_a_run_that_got_nowhere_holds_no_row_back(read, folder):
    before, after = read(), read(changed(batch_size=64))
    workdir = folder.seed(before.rows[0], 0)
    begin(workdir, before.config(before.rows[0], 0))
    (workdir / "metrics.jsonl").unlink()
    check_row(after, folder, after.rows[0])


def test_code_of_ones_own_can_be_compared(read, folder):
    """No run is started by what the folder names."""
    rows = {"own": {"task.loss": "their.module:loss"}}
    sweep = read(rows)
    begin(folder.seed(sweep.rows[0], 0), sweep.config(sweep.rows[0], 0))
    check_row(sweep, folder, sweep.rows[0])
    other = read({"own": {"task.loss": "their.module:other"}})
    with pytest.raises(ConfigError, match=r"task\.loss"):
        check_row(other, folder, other.rows[0])


# Tuned rows


def finish(workdir, config, error):
    begin(workdir, config)
    metrics = {"val_error": {"final": error, "unit": "%", "rises": False, "words": "error"}}
    result = {"complete": True, "headline": "val_error", "final": error, "metrics": metrics}
    (workdir / "result.json").write_text(json.dumps(result))


def tune(sweep, folder, errors):
    row = sweep.rows[0]
    for i, (error, values) in enumerate(zip(errors, points(sweep.file, sweep.settings))):
        if not folder.point(row, i).exists():
            finish(folder.point(row, i), sweep.config(row, 1_000_000, **values), error)
    return row


@pytest.mark.parametrize(("error_of_third", "same"), [(3.0, True), (1.0, False)])
def test_more_points_may_not_change_what_seeds_were_run_with(read, folder, error_of_third, same):
    before, after = read(settings=TUNED + "2"), read(settings=TUNED + "3")
    row = tune(before, folder, [4.0, 2.0])
    chosen = points(before.file, before.settings)[1]
    finish(folder.seed(row, 0), before.config(row, 0, **chosen), 2.0)
    check_row(before, folder, row)
    check_row(after, folder, row)  # the third point is still to be tried
    tune(after, folder, [4.0, 2.0, error_of_third])
    if same:
        check_row(after, folder, row)
        return
    with pytest.raises(ConfigError, match="another point is the best of the row by now"):
        check_row(after, folder, row)


def test_other_ranges_are_told(read, folder):
    before = read(settings=TUNED + "2")
    row = tune(before, folder, [4.0, 2.0])
    after = read(settings=(TUNED + "2").replace("1.0", "2.0"))
    with pytest.raises(ConfigError, match=r"tune_0 .* differs in optimizer\.weight_decay"):
        check_row(after, folder, row)


def test_a_sweep_keeps_out_of_runs_and_of_other_sweeps(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "tiny.py"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    SweepFolder(tmp_path / "other").describe(sweep)
    for place, says in (
        ("run", "is the workdir of a run"),
        ("other/row", "lies within the sweep in"),
        ("other/row/seed_0", "lies within the sweep in"),
    ):
        with pytest.raises(ConfigError, match=says):
            run_sweep(sweep, SweepFolder(tmp_path / place), sweep.rows, pytest.fail, 1)
