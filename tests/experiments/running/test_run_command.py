"""What the command line of a sweep says."""

import json
import re

import pytest
from tiny_sweep import ROWS, write_sweep

from lbsgd.experiments import command, run_command
from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.sweep import read_sweep
from lbsgd.main import main
from lbsgd.system import errors

NAMES = {
    "kn=32": {},
    "kn=64": {"batch_size": 64},
    "kn=64, slow": {"batch_size": 64, "learning_rate.reference_learning_rate": 0.01},
    "other": {"batch_size": 16},
}


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


def test_a_value_may_stand_apart_from_its_key(run):
    """Takes the next word as in `lbsgd train`: for numbers, options, lists, not on or off."""
    words = ["--config.log.every_steps", "9", "--config.optimizer.nesterov", "--list"]
    assert run(*words, "--config.task.options.x", "1")[0] == errors.EXIT_DONE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "kn"], r"--only 'kn' begins the names of 3 rows: 'kn=32', .*; write more"),
        (["--only", "othre"], "--only 'othre' is no row; the nearest is 'other'"),
        (["--seeds=0"], "--seeds: must be a number from 1 on, not '0'"),
        (["--parallel=two"], "--parallel: must be a number from 1 on, not 'two'"),
        (["--config.batch_siz=3"], "unknown config key 'batch_siz'; the nearest .* 'batch_size'"),
        (["--config.batch_size=-3"], "row 'kn=32': batch_size"),
        (["--config.batch_size", "-3"], "row 'kn=32': batch_size .*-3"),
        (["--config.optimizer.nesterov", "--config.batch_size", "-3"], "row 'kn=32': batch_size"),
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


def test_a_folder_is_that_of_one_file_and_variant(tmp_path, capsys):
    file, runs = write_sweep(tmp_path / "tiny.py"), tmp_path / "runs"
    SweepFolder(runs).describe(read_sweep(f"{file}:small"))
    for other in (file, f"{file}:large", write_sweep(tmp_path / "other.py") + ":small"):
        assert run_command.main([other, f"--workdir={runs}"]) == errors.EXIT_USER
        expected = f"lbsgd: {runs} holds the sweep of {file}:small; choose another --workdir\n"
        assert capsys.readouterr().err == expected


@pytest.mark.long
def test_a_file_that_has_a_sweep_says_so_where_it_is_trained_alone(tmp_path, capsys):
    file = write_sweep(tmp_path / "tiny.py")
    assert main(["train", f"--config={file}", "--explain", "--num_processes=1"]) == errors.EXIT_DONE
    first, *others = capsys.readouterr().out.splitlines()
    assert first == (
        f"{file} has a sweep of 2 rows, and this is its get_config alone; "
        f"lbsgd sweep run {file} runs the sweep"
    )
    assert any(line.startswith("minibatch: kn=32") for line in others)


def test_variants_have_folders_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = write_sweep(tmp_path / "tiny.py")
    for folder, seeds in (("tiny", (0,)), ("tiny_small", (0, 1))):
        for seed in seeds:
            workdir = tmp_path / "runs" / folder / "rate=0.1" / f"seed_{seed}"
            workdir.mkdir(parents=True)
            (workdir / "result.json").write_text('{"complete": true}')
    for variant, complete in (("", "1 complete, 3"), (":small", "2 complete, 2"), (":x", ": 4")):
        assert run_command.main([file + variant, "--list"]) == errors.EXIT_DONE
        assert f"{complete} to do" in capsys.readouterr().out


def test_a_sweep_of_which_all_diverged_is_reported_too(tmp_path, capsys):
    file, folder = write_sweep(tmp_path / "tiny.py"), SweepFolder(tmp_path / "runs")
    for row in read_sweep(file).rows:
        for seed in range(2):
            folder.seed(row, seed).mkdir(parents=True)
            result = {"diverged": "the loss is not finite", "headline": "val_error"}
            (folder.seed(row, seed) / "result.json").write_text(json.dumps(result))
    assert run_command.main([file, f"--workdir={folder.path}"]) == errors.EXIT_DONE
    assert "rate=0.1: diverged (seeds 0, 1): the loss is not finite" in capsys.readouterr().out
    assert (folder.path / "report.html").is_file()


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
