"""Trains jobs as a worker process does: a run that fails is noted, and the next one trained."""

import pytest
from tiny_sweep import write_sweep

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import Status
from lbsgd.experiments.running.jobs import Job, seed_run
from lbsgd.experiments.running.training import train_job
from lbsgd.experiments.sweep import read_sweep


@pytest.fixture
def job(tmp_path):
    """Three runs of a row whose data are not there."""
    rows = {"no data": {"data.source": "folder", "data.dir": str(tmp_path / "none")}}
    sweep = read_sweep(write_sweep(tmp_path / "tiny.py", rows))
    folder = SweepFolder(tmp_path / "runs")
    return Job(tuple(seed_run(sweep, folder, sweep.rows[0], seed) for seed in range(3)))


def stands(job):
    return [run.standing().status for run in job.runs]


@pytest.mark.parametrize("at_once", [0, 1, 2, 3])
def test_what_fails_is_noted_with_its_reason(job, at_once, tmp_path):
    train_job(job._replace(at_once=at_once), lambda done: False, pytest.fail)
    assert stands(job) == [Status.FAILED] * 3
    for run in job.runs:
        assert str(tmp_path / "none") in run.standing().reason


def test_a_job_that_is_to_stop_begins_no_other_run(job):
    train_job(job, lambda done: True, pytest.fail)
    assert stands(job) == [Status.FAILED, Status.MISSING, Status.MISSING]
