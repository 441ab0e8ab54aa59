"""What the command line of a sweep says."""

import re

import pytest
from tiny_sweep import ROWS, write_sweep

from lbsgd.experiments import command, run_command
from lbsgd.system import errors

NAMES = {"kn=32": {}, "kn=64": {}, "kn=64, slow": {}, "other": {}}


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command, and returns its exit code and what it says."""

    def run(*words, rows=NAMES):
        file = write_sweep(tmp_path / "tiny.py", rows)
        code = run_command.main([file, f"--workdir={tmp_path}/runs", *words])
        out, err = capsys.readouterr()
        return code, out + err

    return run


@pytest.mark.parametrize(
    ("only", "rows"),
    [
        ([], list(NAMES)),
        (["kn=64"], ["kn=64"]),  # though another begins with it
        (["kn=64,"], ["kn=64, slow"]),
        (["oth", "kn=3"], ["kn=32", "other"]),
    ],
)
def test_rows_are_chosen_by_name_or_how_it_begins(run, only, rows):
    code, said = run("--list", *(["--only", *only] if only else []))
    assert code == errors.EXIT_DONE
    assert re.findall(r"^  (.*): 2 missing", said, re.MULTILINE) == rows


def test_numbers_of_the_command_line_stand_in_for_those_of_the_file(run, monkeypatch):
    assert run("--list", "--seeds=7")[1].startswith("28 runs of 4 rows: 28 to do")
    started = []
    monkeypatch.setattr(run_command, "run_sweep", lambda sweep, *_: started.append(sweep.settings))
    for words in (["--seeds=7", "--seeds_at_once=3"], ["--seeds_at_once=0"], []):
        run(*words)
    assert [(s.seeds, s.seeds_at_once) for s in started] == [(7, 3), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "kn"], r"--only 'kn' begins the names of 3 rows: 'kn=32', .*; write more"),
        (["--only", "othre"], "--only 'othre' is no row; the nearest is 'other'"),
        (["--seeds=0"], "--seeds: must be a number from 1 on, not '0'"),
        (["--parallel=two"], "--parallel: must be a number from 1 on, not 'two'"),
        (["--config.batch_siz=3"], "unknown config key 'batch_siz'; the nearest .* 'batch_size'"),
        (["--config.batch_size=-3"], "row 'kn=32': batch_size"),
        (["--slurm.partition=gpu"], "--slurm.partition is used with --engine slurm alone"),
        (["--seed=3"], "unrecognized arguments: --seed=3"),
        (["--engine=clowd"], "invalid choice: 'clowd'"),
    ],
)
def test_mistakes_are_told_in_a_line(run, tmp_path, words, said):
    code, out = run(*words)
    assert code == errors.EXIT_USER
    assert re.search(rf"\Albsgd: .*{said}.*\n\Z", out), out
    assert not (tmp_path / "runs").exists()


def test_a_row_that_changed_is_told_before_anything_runs(run, tmp_path):
    """Also where it is not among those that are to be run."""
    workdir = tmp_path / "runs" / "rate=0.1" / "seed_0"
    workdir.mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text('{"step": 1}\n')
    (workdir / "config.json").write_text('{"config": {"batch_size": 16}}')
    code, out = run("--only", "rate=0.2", rows=ROWS)
    assert code == errors.EXIT_USER
    assert re.fullmatch(r"lbsgd: row 'rate=0.1': .* differs in batch_size \(16 there.*\n", out)
    assert not (tmp_path / "runs" / "sweep.json").exists()
    code, out = run("--list", rows=ROWS)
    assert code == errors.EXIT_DONE
    assert re.search(r"rate=0.1: .*its config has changed since", out)
    assert not re.search(r"rate=0.2.*has changed", out)


@pytest.mark.parametrize(
    ("words", "said"), [([], "required: action"), (["rum"], "'rum' (choose from")]
)
def test_command_has_two_words(capsys, words, said):
    assert command.main(words) == errors.EXIT_USER
    assert said in capsys.readouterr().err


def test_a_plan_names_every_row_that_cannot_be_run(run):
    rows = {"good": {}, "bad": {"batch_size": 40}, "worse": {"batch_size": 24}}
    code, out = run("--dry_run", rows=rows)
    assert code == errors.EXIT_USER
    found = re.findall(r"^lbsgd: row '(\w+)' cannot be run: batch_size=(\d+) is not a", out, re.M)
    assert found == [("bad", "40"), ("worse", "24")]
    assert "\ngood: 2 of 2 runs to do\n" in out
