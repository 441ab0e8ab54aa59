"""What is left to do, as a function of a sweep and of how its workdirs stand."""

import json

import pytest
from tiny_sweep import ROWS, write_sweep

from lbsgd.config.keys import flatten
from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import note_failure
from lbsgd.experiments.running.job_queue import Queue
from lbsgd.experiments.running.jobs import Job, jobs_of, saved_updates, seed_run
from lbsgd.experiments.sweep import read_sweep

COMPLETE = {"complete": True, "headline": "val_error", "final": 1.0}
TUNED = 'seeds=2, tune={"optimizer.weight_decay": (1e-5, 1e-3, "log")}, tune_points=2'


def stand(workdir, **result):
    """Has a workdir hold the result of a run."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "result.json").write_text(json.dumps(result))


def complete(workdir, error):
    metric = {"final": error, "unit": "%", "rises": False, "words": "error"}
    stand(workdir, **{**COMPLETE, "final": error}, metrics={"val_error": metric})


@pytest.fixture
def make(tmp_path):
    def make(settings="seeds=3", rows=ROWS):
        sweep = read_sweep(write_sweep(tmp_path / "tiny.py", rows, settings=settings))
        return sweep, SweepFolder(tmp_path / "runs")

    return make


def left(sweep, folder):
    return [str(job) for row in sweep.rows for job in jobs_of(sweep, folder, row)]


def test_all_rows_and_seeds_are_to_do_at_first(make):
    assert left(*make()) == [f"{name} seed {i}" for name in ROWS for i in range(3)]


@pytest.mark.parametrize(
    ("result", "again"),
    [
        (COMPLETE, False),
        ({"complete": False, "diverged": "the loss is not finite"}, False),
        ({"complete": False}, True),  # it was stopped
    ],
)
def test_what_is_over_is_left_alone(make, result, again):
    sweep, folder = make()
    stand(folder.seed(sweep.rows[0], 1), **result)
    assert ("rate=0.1 seed 1" in left(sweep, folder)) == again
    assert len(left(sweep, folder)) == 5 + again


def test_what_failed_is_tried_again(make):
    sweep, folder = make()
    note_failure(folder.seed(sweep.rows[1], 0), "the disk was full")
    assert len(left(sweep, folder)) == 6


def test_runs_that_are_added_come_besides(make):
    """More seeds, and a row before the others."""
    sweep, folder = make()
    for row in sweep.rows:
        for seed in range(3):
            stand(folder.seed(row, seed), **COMPLETE)
    assert left(sweep, folder) == []
    more, _ = make("seeds=4", {"new": {"batch_size": 16}, **ROWS})
    expected = [f"new seed {i}" for i in range(4)] + [f"{name} seed 3" for name in ROWS]
    assert left(more, folder) == expected


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [(1, ["seed 0", "seed 2", "seed 3"]), (2, ["seed 0 to 2", "seed 3"]), (0, ["seed 0 to 3"])],
)
def test_seeds_are_grouped_without_those_that_are_over(make, at_once, expected):
    sweep, folder = make(f"seeds=4, seeds_at_once={at_once}")
    row = sweep.rows[0]
    stand(folder.seed(row, 1), **COMPLETE)
    jobs = jobs_of(sweep, folder, row)
    assert [str(job).removeprefix("rate=0.1 ") for job in jobs] == expected
    assert {job.at_once for job in jobs} == {at_once}


def test_a_job_drops_what_is_over_by_now(make):
    sweep, folder = make("seeds=2, seeds_at_once=2")
    (job,) = jobs_of(sweep, folder, sweep.rows[0])
    stand(folder.seed(sweep.rows[0], 0), **COMPLETE)
    assert [run.what for run in job.left().runs] == ["seed 1"]
    stand(folder.seed(sweep.rows[0], 1), **COMPLETE)
    assert job.left() is None


def test_a_job_comes_out_of_a_pipe_as_it_went_in(make):
    sweep, folder = make()
    (job, *_) = jobs_of(sweep, folder, sweep.rows[1])
    there = Job.load(job.dump())
    assert there.dump() == job.dump()
    # Of the same types too, tuples among them.
    config = sweep.config(sweep.rows[1], 0)
    assert repr(list(flatten(there.runs[0].config))) == repr(list(flatten(config)))


def test_saved_updates_are_those_of_the_newest_checkpoints(make):
    sweep, folder = make()
    runs = tuple(seed_run(sweep, folder, sweep.rows[0], seed) for seed in range(2))
    assert saved_updates(Job(runs)) == 0
    for name in ("3", "12", "14.partial"):
        (folder.seed(sweep.rows[0], 0) / "checkpoints" / name).mkdir(parents=True)
    (folder.seed(sweep.rows[0], 1) / "checkpoints" / "1").mkdir(parents=True)
    assert saved_updates(Job(runs)) == 13


# Tuning


def drain(queue):
    """Takes the jobs that there are now."""
    jobs = []
    while job := queue.next():
        jobs.append(job)
    return jobs


def test_seeds_of_a_row_follow_once_its_own_points_are_over(make):
    sweep, folder = make(TUNED)
    first, second = sweep.rows
    queue = Queue(sweep, folder, sweep.rows)
    jobs = drain(queue)
    assert [job.runs[0].what for job in jobs] == ["point 0", "point 1"] * 2
    assert {job.runs[0].config.seed for job in jobs} == {1_000_000}
    decays = [job.runs[0].config.optimizer.weight_decay for job in jobs]
    assert decays[:2] == decays[2:]
    complete(folder.point(first, 0), 3.0)
    complete(folder.point(first, 1), 2.0)
    queue.over(jobs[0])
    assert drain(queue) == []
    queue.over(jobs[1])
    seeds = drain(queue)
    assert [str(job) for job in seeds] == ["rate=0.1 seed 0", "rate=0.1 seed 1"]
    chosen = [job.runs[0].config.optimizer.weight_decay for job in seeds]
    assert chosen == [decays[1]] * 2
    complete(folder.point(second, 0), 1.0)
    for job in jobs[2:]:
        queue.over(job)  # of which the second failed
    chosen = [job.runs[0].config.optimizer.weight_decay for job in drain(queue)]
    assert chosen == [decays[0]] * 2


def test_a_row_of_which_no_point_is_complete_is_a_problem(make):
    sweep, folder = make(TUNED)
    queue = Queue(sweep, folder, sweep.rows)
    for job in drain(queue):
        stand(folder.path / job.runs[0].workdir, diverged="at once")
        queue.over(job)
    assert drain(queue) == []
    assert set(queue.problems) == set(ROWS)
    assert "none of its points is complete" in queue.problems["rate=0.1"]


def test_a_failed_job_is_handed_out_once(make):
    sweep, folder = make("seeds=1")
    queue = Queue(sweep, folder, sweep.rows)
    for job in drain(queue):
        note_failure(folder.path / job.runs[0].workdir, "no such folder")
        queue.over(job)
    assert drain(queue) == []


@pytest.mark.parametrize("field", ["metric", "tune_metric"])
def test_a_metric_that_evaluations_do_not_have_ends_the_sweep_after_a_job(make, field):
    sweep, folder = make(f'seeds=3, {field}="val_acc"')
    queue = Queue(sweep, folder, sweep.rows)
    job = queue.next()
    complete(folder.seed(sweep.rows[0], 0), 5.0)
    queue.over(job)
    assert queue.next() is None
    says = f"Settings: {field}='val_acc' is no metric of evaluations, which are val_error; mend it"
    assert queue.problems[""].startswith(says)


def test_a_metric_that_they_have_does_not(make):
    sweep, folder = make('seeds=3, metric="val_error"')
    queue = Queue(sweep, folder, sweep.rows)
    job = queue.next()
    complete(folder.seed(sweep.rows[0], 0), 5.0)
    queue.over(job)
    assert queue.next()
    assert not queue.problems
