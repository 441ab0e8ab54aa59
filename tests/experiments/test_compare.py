"""Comparisons say what differs, which is better and whether that is sure, and where runs part."""

import json
import math

import made_up
import pytest
from scipy import stats

from lbsgd.experiments import compare_command, load
from lbsgd.experiments.compare import parting, parting_epoch
from lbsgd.experiments.outcome import note_failure
from lbsgd.experiments.results import Curve
from lbsgd.experiments.table import markdown

ROWS = {
    "kn=64": {"batch_size": 64},
    "kn=256: no warmup": {"batch_size": 256, "learning_rate.warmup": "none"},
}
NAMES = list(ROWS)


@pytest.fixture
def sweep():
    return made_up.sweep_of(ROWS, seeds=3)


@pytest.fixture
def folder(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return made_up.begin(sweep, tmp_path / "x")


def compared(capsys, *words):
    assert compare_command.main(words) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 100 for line in out.splitlines())
    return out


def refused(capsys, *words):
    assert compare_command.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_rows_of_a_sweep(sweep, folder, capsys):
    for seed, off in enumerate((-0.1, 0.0, 0.1)):
        made_up.write_run(sweep, folder, NAMES[0], seed, [80 + off, 40 + off, *[20 + off] * 6])
        errors = [80 + off, 40 + off, *[22 + 2 * off] * 6]
        made_up.write_run(sweep, folder, NAMES[1], seed, errors)
    out = compared(capsys, "x")
    assert "batch_size            64       256" in out
    assert "learning_rate.warmup  gradual  none" in out
    assert "model" not in out  # which differs in nothing
    assert "A  20.00 ± 0.10, n = 3" in out
    oracle = stats.ttest_ind([21.8, 22, 22.2], [19.9, 20, 20.1], equal_var=False)
    low, high = oracle.confidence_interval()
    assert (
        f"+2.00 (95% interval {low:+.2f} to {high:+.2f}), significantly worse: Welch's t, p = "
        in out
    )
    assert f"p = {oracle.pvalue:.2g}, n = 3" in out
    assert "B from A: their means differ significantly at each evaluation from epoch 3 on" in out


def test_rows_are_named_behind_a_colon(sweep, folder, capsys):
    for name in NAMES:
        for seed in range(2):
            made_up.write_run(sweep, folder, name, seed, [20.0 + seed] * 5)
    out = compared(capsys, f"x:{NAMES[1]}", f"x:{NAMES[0]}")
    assert out.startswith(f"A  {NAMES[1]}\nB  {NAMES[0]}\n")
    assert "cannot be told apart at n = 2 (p = 1)" in out


def test_runs_of_one_seed_part_at_an_update(sweep, folder, capsys):
    losses = [2.0] * 20
    for name, loss in zip(NAMES, (losses, [*losses[:11], 2.019, 2.021, *losses[13:]])):
        made_up.write_run(sweep, folder, name, 0, [20.0, 21.0], losses=loss)
    row = folder.path / sweep.rows[1].folder / "seed_0"
    out = compared(capsys, "x/kn=64/seed_0", str(row))
    assert "they part at update 13, the first logged" in out
    assert "2 and 2.021" in " ".join(out.split())
    assert "one run has no spread to judge that by (n = 1): run more seeds" in out


def test_runs_of_two_seeds_part_at_once(sweep, folder, capsys):
    for seed in range(2):
        made_up.write_run(sweep, folder, NAMES[0], seed, [20.0, 21.0])
    out = compared(capsys, "x/kn=64/seed_0", "x/kn=64/seed_1")
    assert "seed          0  1" in out
    assert "their seeds differ (0 and 1)" in out


def test_a_run_is_compared_with_itself(sweep, folder, capsys):
    made_up.write_run(sweep, folder, NAMES[0], 0, [20.0, 21.0])
    out = compared(capsys, "x/kn=64/seed_0", "x/kn=64/seed_0")
    assert "their configs are the same" in out
    assert "never more than 1% apart, at 20 updates" in out


def test_a_run_that_goes_on_and_one_that_diverged(sweep, folder, capsys):
    made_up.write_run(sweep, folder, NAMES[0], 0, [80.0, 40.0], ends="unfinished")
    made_up.write_run(sweep, folder, NAMES[1], 0, [85.0, None], ends="loss is not finite")
    row = folder.path / sweep.rows[1].folder / "seed_0"
    out = compared(capsys, "x/kn=64/seed_0", str(row))
    assert "A  unfinished after 20 updates = 2 epochs; 40.00 at the last evaluation" in out
    assert "B  diverged after 20 updates = 2 epochs: loss is not finite; 85.00 at the last" in out
    assert "there is no result to compare" in out


def test_rows_that_have_not_begun_or_failed(sweep, folder, capsys):
    note_failure(folder.seed(sweep.rows[0], 0), "out of memory")
    out = compared(capsys, "x")
    assert "A has not begun, and its config is not known yet" in out
    assert "none has come to a result yet" in out


def test_runs_of_different_tasks_cannot_be_compared(sweep, folder, capsys):
    for name, headline in zip(NAMES, ("val_error", "val_mse")):
        workdir = made_up.write_run(sweep, folder, name, 0, [9.0] * 6)
        result = json.loads((workdir / "result.json").read_text())
        (workdir / "result.json").write_text(json.dumps({**result, "headline": headline}))
    assert "these runs are of different tasks and cannot be compared" in refused(capsys, "x")


def test_other_validation_sets_are_said(sweep, folder, capsys):
    for name, set_ in zip(NAMES, ("digits", "others")):
        workdir = made_up.write_run(sweep, folder, name, 0, [9.0] * 6)
        text = (workdir / "config.json").read_text()
        text = text.replace('"validation_set": "digits"', f'"validation_set": "{set_}"')
        (workdir / "config.json").write_text(text)
    assert "their validation sets differ" in compared(capsys, "x")


def test_a_row_that_has_not_begun_has_no_other_validation_set(sweep, folder, capsys):
    for seed in range(2):
        made_up.write_run(sweep, folder, NAMES[0], seed, [9.0] * 6)
    assert "validation sets differ" not in compared(capsys, "x")


def test_rows_are_compared_with_the_baseline_or_with_what_is_named_first(tmp_path, capsys):
    sweep = made_up.sweep_of(ROWS, seeds=2, baseline=NAMES[1])
    folder = made_up.begin(sweep, tmp_path / "x")
    other = made_up.begin(sweep, tmp_path / "y")
    for seed in range(2):
        made_up.write_run(sweep, folder, NAMES[0], seed, [20.0 + seed] * 6)
        made_up.write_run(sweep, folder, NAMES[1], seed, [50.0 + seed] * 6)
        made_up.write_run(sweep, other, NAMES[0], seed, [80.0 + seed] * 6)
    out = compared(capsys, str(folder.path))
    assert out.startswith(f"A  {NAMES[1]}\nB  {NAMES[0]}\n")
    assert "B against A: -30.00 (" in out
    out = compared(capsys, str(other.path), str(folder.path))
    assert out.startswith(f"A  y: {NAMES[0]}\n")
    assert "C against A: -60.00 (" in out


def test_seeds_with_sets_of_their_own_are_compared_one_by_one(sweep, folder, capsys):
    for name in NAMES:
        for seed in range(2):
            workdir = made_up.write_run(sweep, folder, name, seed, [9.0 + seed] * 6)
            text = (workdir / "config.json").read_text()
            text = text.replace('"validation_set": "digits"', f'"validation_set": "of {seed}"')
            (workdir / "config.json").write_text(text)
    assert "validation sets differ" not in compared(capsys, "x")
    assert "Each seed is judged by a validation set of its own" in markdown(load(folder.path))


def test_another_metric_is_compared(sweep, folder, capsys):
    for name in NAMES:
        made_up.write_run(sweep, folder, name, 0, [8.0] * 6)
    assert "A  0.2000, n = 1" in compared(capsys, "x", "--metric", "val_loss")
    err = refused(capsys, "x", "--metric", "loss")
    assert "no run has the metric 'loss'; they have val_error, val_loss" in err


def test_many_rows_with_long_values_stay_within_the_terminal(tmp_path, capsys):
    rows = {f"row {i} {'long ' * 30}": {"data.dir": f"{i % 2}/" + "x" * 70} for i in range(12)}
    sweep = made_up.sweep_of(rows, seeds=1)
    folder = made_up.begin(sweep, tmp_path)
    for name in rows:
        made_up.write_run(sweep, folder, name, 0, [9.0] * 6)
    out = compared(capsys, str(tmp_path))
    assert "where and how they are computed" in out
    assert "B, D, F, H, J, L: 1/xxx" in " ".join(out.split())


def test_a_results_file_is_as_good_as_its_folder(sweep, folder, capsys, tmp_path):
    for name, error in zip(NAMES, (8.0, 9.0)):
        made_up.write_run(sweep, folder, name, 0, [error] * 6)
    expected = compared(capsys, *(f"x:{name}" for name in NAMES))
    load(tmp_path / "x").write(tmp_path / "kept.json")
    found = compared(capsys, *(f"kept.json:{name}" for name in NAMES))
    assert found.strip() == expected.partition("B from A")[0].strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x:kn=6", "x"], "x has no row 'kn=6'; it has kn=64, kn=256: no warmup"),
        (["x:kn=64"], "nothing to compare 'kn=64' with"),
        (["nowhere", "x"], "nowhere is neither the folder of a sweep nor the workdir of a run"),
        ([], "required: RUN"),
        (["x", "--oot", "y"], "--oot"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, words, said):
    assert said in refused(capsys, *words)


def test_the_picture_is_written(sweep, folder, capsys, tmp_path):
    for name in NAMES:
        made_up.write_run(sweep, folder, name, 0, [80.0, 9.0])
    assert compared(capsys, "x", "--out", "of/this").endswith("of/this/compare.png\n")
    assert (tmp_path / "of/this/compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("one", "other", "step"),
    [
        ({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.009}, None),
        ({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0102}, 2),
        ({1: 1.0, 3: 1.0, 5: 2.0}, {2: 9.0, 3: 1.0, 5: 1.0}, 5),
        ({1: -1.0}, {1: 1.0}, 1),
        ({1: 0.0}, {1: 0.0}, None),
        ({}, {1: 1.0}, None),
    ],
)
def test_parting_is_the_first_update_more_than_one_percent_apart(one, other, step):
    assert parting(one, other) == step


def curve(values, shift=0.0):
    return Curve(made_up.np.arange(1, len(values) + 1) + shift, made_up.np.array(values))


def test_means_part_where_they_stay_apart():
    """Apart at 2, together at 3, apart from 4 on."""
    one = [curve([5, 9.0, 5, 9.0, 9.0]), curve([6, 9.1, 6, 9.1, 9.1])]
    other = [curve([5.1, 4.0, 5.1, 4.0, 4.0]), curve([6.1, 4.1, 6.1, 4.1, 4.1])]
    assert parting_epoch(one, other) == 4
    assert parting_epoch(one, one) is None


def test_values_that_are_not_finite_are_no_difference():
    one = [curve([5, 9.0, 9.0]), curve([6, 9.1, math.nan])]
    other = [curve([5, 4.0, 4.0]), curve([6, 4.1, 4.1])]
    assert parting_epoch(one, other) is None
    assert parting_epoch(one[:1] * 2, other[:1] * 2) == 2  # without any spread, but apart


def test_a_row_without_a_result_is_not_said_to_part(sweep, folder, capsys):
    for seed in range(2):
        made_up.write_run(sweep, folder, NAMES[0], seed, [9.0 + seed] * 3)
        made_up.write_run(sweep, folder, NAMES[1], seed, [None] * 3)
    out = compared(capsys, "x")
    assert "B against A: there is no result to compare" in out
    assert "B from A" not in out


def test_rows_without_a_common_epoch_are_not_said_to_part(sweep, folder, capsys):
    """The first ends at epoch 3, and the other is evaluated at 9 alone."""
    for seed in range(2):
        made_up.write_run(sweep, folder, NAMES[0], seed, [9.0 + seed] * 3)
        workdir = made_up.write_run(sweep, folder, NAMES[1], seed, [5.0 + seed] * 9)
        lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = [line for line in lines if "val_" not in line or '"epoch": 9.0' in line]
        (workdir / "metrics.jsonl").write_text("".join(kept))
    out = compared(capsys, "x")
    assert "B against A: -4.00" in out
    assert "B from A" not in out


def test_an_evaluation_that_is_not_finite_tells_nothing_apart():
    """Apart at 1 and 3 and not known at 2, so from 3 on."""
    one = [curve([5.0, 5.0, 5.0]), curve([5.1, 5.1, 5.1])]
    other = [curve([9.0, float("nan"), 9.0]), curve([9.1, 9.1, 9.1])]
    assert parting_epoch(one, other) == 3
    assert parting_epoch(other, one) == 3


def test_rows_evaluated_at_other_times_are_interpolated():
    one = [curve([10.0, 8.0, 6.0, 4.0]), curve([10.1, 8.1, 6.1, 4.1])]
    late = [curve([9.0, 7.0, 5.0, 3.0], 0.5), curve([9.1, 7.1, 5.1, 3.1], 0.5)]
    assert parting_epoch(one, late) is None  # points of the same lines
    # As far as both reach: beyond that nothing is known of the shorter.
    short = [Curve(c.epochs[:2], c.values[:2]) for c in one]
    assert parting_epoch(one, short) is parting_epoch(short, one) is None
