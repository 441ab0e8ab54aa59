"""Starts sweeps: who has the folder, what they end with, and that a report is made.

The engine is one of the tests': it writes into workdirs what training would.
"""

import json

import pytest
from tiny_sweep import ROWS, write_sweep

from lbsgd.experiments import load, report_command
from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import note_failure, standing
from lbsgd.experiments.running.session import run_sweep
from lbsgd.experiments.sweep import read_sweep
from lbsgd.system import errors
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import any_path

COMPLETE = {
    "complete": True,
    "headline": "val_error",
    "final": 2.5,
    "metrics": {"val_error": {"final": 2.5, "unit": "%", "rises": False, "words": "error"}},
}
DIVERGED = {"complete": False, "diverged": "the loss is not finite"}
TUNED = 'seeds=1, tune={"optimizer.momentum": (0.1, 0.9, "log")}, tune_points=2'


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "runs")


@pytest.fixture
def run(tmp_path, folder, capsys):
    """Runs the tiny sweep by an engine; its exit code, and what it says."""

    def run(engine, settings="seeds=1"):
        sweep = read_sweep(write_sweep(tmp_path / "tiny.py", settings=settings))
        code = run_sweep(sweep, folder, sweep.rows, engine, 1)
        return code, capsys.readouterr().out

    return run


def ending(*ends, stopped=False):
    """An engine whose runs end so, in turn: a result, or why they failed."""

    def engine(jobs, board, display, logs):
        left = iter(ends)
        while job := jobs.next():
            for run in job.runs:
                end, workdir = next(left), any_path(run.workdir)
                if isinstance(end, str):
                    note_failure(workdir, end)
                elif end:
                    workdir.mkdir(parents=True, exist_ok=True)
                    (workdir / "result.json").write_text(json.dumps(end))
                board.end(run, standing(workdir))
            jobs.over(job)
        return stopped

    return engine


@pytest.mark.parametrize(
    ("ends", "stopped", "code"),
    [
        ((DIVERGED, DIVERGED), False, errors.EXIT_DONE),
        ((DIVERGED, "no such folder"), False, errors.EXIT_FAILED),
        ((DIVERGED, None), True, errors.EXIT_PREEMPTED),
        (("no such folder", DIVERGED), True, errors.EXIT_PREEMPTED),
    ],
)
def test_exit_code_says_how_it_ended(run, ends, stopped, code):
    found, said = run(ending(*ends, stopped=stopped))
    assert found == code
    assert ("seed_0 failed: no such folder" in said) == (code == errors.EXIT_FAILED)


def test_what_cannot_be_done_for_a_row_is_a_failure(run):
    """Its points diverged, so that it cannot be tuned."""
    code, said = run(ending(*[DIVERGED] * 4), TUNED)
    assert code == errors.EXIT_FAILED
    assert said.count("none of its points is complete") == len(ROWS)


def test_what_failed_before_is_no_failure_once_it_is_complete(run):
    assert run(ending(DIVERGED, "the disk was full"))[0] == errors.EXIT_FAILED
    done = []

    def engine(jobs, board, display, logs):
        done.append(board.done)
        # The note is still there, as where removing it failed.
        return ending(DIVERGED)(jobs, board, display, logs)

    assert run(engine)[0] == errors.EXIT_DONE
    assert done == [1]  # what failed is to do again


def test_a_report_is_made_of_what_is_complete(run, folder):
    code, said = run(ending(COMPLETE, "no such folder"))
    assert code == errors.EXIT_FAILED
    finals = [row.finals("val_error").tolist() for row in load(folder.path).rows]
    assert finals == [[2.5], []]
    assert "| 2.50" in said


def test_a_report_that_cannot_be_made_is_a_line(run, monkeypatch):
    def breaks(argv):
        raise ValueError("of a library that draws")

    monkeypatch.setattr(report_command, "main", breaks)
    code, said = run(ending(COMPLETE, COMPLETE))
    assert code == errors.EXIT_DONE
    assert "no report (ValueError: of a library that draws); lbsgd sweep report" in said


def test_a_folder_has_one_runner_from_its_start_to_its_end(run, folder):
    refused = []

    def engine(jobs, board, display, logs):
        with pytest.raises(ConfigError, match=r"is being run by process \d+ on ") as caught:
            run(pytest.fail)
        refused.append(str(caught.value))
        return ending(DIVERGED, DIVERGED)(jobs, board, display, logs)

    assert run(engine)[0] == errors.EXIT_DONE
    assert str(folder.path) in refused[0]
    assert run(ending())[0] == errors.EXIT_DONE  # nothing is left to do, and nobody has it
