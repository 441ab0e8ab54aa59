"""How far a sweep is, and how that is shown."""

import io
import itertools
import pathlib

import pytest
import rich.console

from lbsgd.experiments.outcome import Standing, Status
from lbsgd.experiments.running import board as board_module
from lbsgd.experiments.running.board import Board, say_counts, say_end, say_finals, say_time
from lbsgd.experiments.running.display import Lines, draw
from lbsgd.experiments.running.jobs import Run


def complete(error):
    metrics = {"val_error": {"final": error, "unit": "%", "rises": False, "words": "error"}}
    result = {"complete": True, "headline": "val_error", "final": error, "metrics": metrics}
    return Standing(Status.COMPLETE, "", result)


DIVERGED = Standing(Status.DIVERGED, "the loss is not finite", {})
FAILED = Standing(Status.FAILED, "no such folder", {})


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(board_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def runs(tmp_path):
    return {
        name: [Run(name, f"seed {i}", str(tmp_path / f"{name}{i}"), None) for i in range(4)]
        for name in ("a", "[b]")
    }


def workdirs(runs):
    return {name: [pathlib.Path(run.workdir) for run in some] for name, some in runs.items()}


@pytest.fixture
def board(runs):
    return Board(workdirs(runs), {})


def test_runs_are_counted_by_how_they_stand(board, runs):
    for run, standing in zip(runs["a"], (complete(1.0), complete(2.0), DIVERGED, FAILED)):
        board.end(run, standing)
    assert (board.done, board.total) == (4, 8)
    assert say_counts(board.lines["a"]) == "1 diverged, 1 failed"
    assert say_counts(board.lines["[b]"]) == ""


def test_result_is_mean_and_standard_deviation_of_the_complete_seeds(board, runs):
    """By hand: 1, 2 and 6 have the mean 3 and the deviations -2, -1, 3: sqrt(14 / 2) = 2.6458."""
    for run, standing in zip(runs["a"], (complete(1.0), complete(2.0), DIVERGED, complete(6.0))):
        board.end(run, standing)
    assert say_finals(board.lines["a"]) == "3.00% \N{PLUS-MINUS SIGN} 2.65%"
    assert say_finals(board.lines["[b]"]) == ""


def test_points_that_were_tried_are_no_result(runs):
    seeds, points = {"a": runs["a"][:2]}, {"a": runs["a"][2:]}
    board = Board(workdirs(seeds), workdirs(points))
    board.end(runs["a"][2], complete(50.0))
    board.end(runs["a"][0], complete(1.5))
    assert say_finals(board.lines["a"]) == "1.50%"


def test_time_left_follows_from_the_time_of_the_runs_so_far(board, runs, clock):
    """A run of `a` takes 10 s: 3 more take 30 s, and as long as none of `[b]` is known, 4 take 40.

    Two processes take half of that.
    """
    assert board.seconds_left(2) is None
    board.begin(runs["a"][0])
    clock[0] = 10.0
    board.end(runs["a"][0], complete(1.0))
    assert board.seconds_left(1) == pytest.approx(70.0)
    assert board.seconds_left(2) == pytest.approx(35.0)
    board.begin(runs["[b]"][0])
    clock[0] = 50.0
    board.end(runs["[b]"][0], complete(1.0))  # which takes 40 s
    assert board.seconds_left(1) == pytest.approx(30.0 + 120.0)


def test_a_run_that_resumed_was_not_made_just_now(board, runs, clock):
    board.begin(runs["a"][0])
    clock[0] = 1.0
    board.show(runs["a"][0], 75, 0.75, {})
    clock[0] = 1.5
    board.show(runs["a"][0], 80, 0.80, {})
    assert board.seconds_left(1) is None  # of 5% nobody knows yet
    clock[0] = 2.0
    board.show(runs["a"][0], 95, 0.95, {})
    # 20% in 2 s: of this run 5% are left, and 7 others.
    assert board.seconds_left(1) == pytest.approx(7.05 * 2 / 0.20)


def test_runs_of_one_process_share_its_time(board, runs, clock):
    """Two take 10 s together, so the other 6 take 30 s."""
    for run in runs["a"][:2]:
        board.begin(run, at_once=2)
    clock[0] = 10.0
    for run in runs["a"][:2]:
        board.end(run, complete(1.0))
    assert board.seconds_left(1) == pytest.approx(30.0)


def test_failed_runs_are_not_waited_for(board, runs, clock):
    board.begin(runs["a"][0])
    clock[0] = 10.0
    board.end(runs["a"][0], complete(1.0))
    for run in [*runs["a"][1:], *runs["[b]"]]:
        board.begin(run)
        board.end(run, FAILED)
    assert board.seconds_left(1) == 0.0


def test_runs_that_failed_before_count_as_to_do_when_they_are_tried_again(board, runs):
    board.end(runs["a"][0], FAILED)
    board.end(runs["a"][1], complete(1.0))
    board.reset_failures(runs["a"])
    assert board.done == 1


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (complete(1.234), "a seed 0: validation error 1.23%"),
        (DIVERGED, "a seed 0: diverged: the loss is not finite"),
        (FAILED, "a seed 0: failed: no such folder"),
        (Standing(Status.UNFINISHED, "", {}), "a seed 0: stopped, to be resumed by the same"),
        (complete(1.0)._replace(result={}), "a seed 0: complete; it was never evaluated"),
    ],
)
def test_end_of_a_run_is_said_in_a_line(runs, standing, words):
    assert say_end(runs["a"][0], standing).startswith(words)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, ""), (20, "20 s"), (300, "5 min"), (12_000, "3 h 20 min"), (200_000, "2 days")],
)
def test_times_are_said_in_words(seconds, words):
    assert say_time(seconds) == words


def test_lines_of_progress_come_ever_more_rarely(board, runs, clock, capsys):
    """After a tenth of the time so far: ten seconds at first, five minutes at last."""
    lines, at = Lines(board, 1), []
    board.begin(runs["a"][0])
    for second in range(0, 20_000, 5):
        clock[0] = float(second)
        board.show(runs["a"][0], second, second / 1e6, {})
        lines.refresh()
        at += [second] if capsys.readouterr().out else []
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert at[:10] == list(range(10, 101, 10))
    assert gaps == sorted(gaps)
    assert gaps[-1] == 300
    # ln(3000 / 100) / ln(1 + 1 / 10) = 36 between, a few less for each is a multiple of 5 s.
    assert 10 + 26 + 56 <= len(at) <= 10 + 36 + 57


def test_the_end_of_a_run_is_a_line_at_once(board, clock, capsys):
    lines = Lines(board, 1)
    clock[0] = 7200.0
    for number in range(3):
        lines.line(f"run {number} has ended")
    assert capsys.readouterr().out.count("has ended") == 3


def test_table_shows_rows_progress_result_and_what_failed(board, runs):
    board.end(runs["a"][0], complete(1.0))
    board.end(runs["a"][1], complete(2.0))
    board.end(runs["a"][2], FAILED)
    board.begin(runs["[b]"][0])
    board.show(runs["[b]"][0], 1200, 0.3, {"val_loss": 2.0, "val_error": 12.5})
    out = io.StringIO()
    rich.console.Console(file=out, width=120).print(draw(board, 1))
    heading, *rows = [line.split() for line in out.getvalue().splitlines()]
    assert heading == ["row", "done", "update", "now", "result", "left"]
    assert rows[0][:2] == ["a", "2/4"]
    assert "1.50% \N{PLUS-MINUS SIGN} 0.71% 1 failed" in " ".join(rows[0])
    assert rows[1][:4] == ["[b]", "0/4", "1,200/4,000", "12.5000"]
    assert "3 of 8 runs done" in " ".join(rows[2])
