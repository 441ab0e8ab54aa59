"""What goes between a runner and its worker processes, and how long a run still takes."""

import io
import json
import os

import ml_collections
import pytest

from lbsgd.experiments.running.jobs import Job, Run
from lbsgd.experiments.running.training import fraction_done
from lbsgd.experiments.running.worker import Answers, command, received
from lbsgd.run.config import default_config


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        os.close(descriptor)


def read_lines(descriptor):
    return [json.loads(line) for line in os.read(descriptor, 2**20).splitlines()]


def test_progress_is_told_with_evaluations_alone_and_then_when_the_job_has_ended(pipe):
    read, write = pipe
    answers = Answers(write)
    answers.progress(1, (30, 0.25), {"epoch": 1.0, "train_loss": 2.0})
    answers.progress(1, (40, 0.5), {"val_error": 12.5, "val_loss": float("nan")})
    answers.ended()
    told = [{"run": 1, "updates": 30, "fraction": 0.25, "values": {}}]
    told += [{"run": 1, "updates": 40, "fraction": 0.5, "values": {"val_error": 12.5}}]
    assert read_lines(read) == [*told, {"ended": True}]


def test_progress_is_told_every_now_and_then(pipe):
    """Else each update of a small network would be a message."""
    read, write = pipe
    answers = Answers(write)
    for done in range(1000):
        answers.progress(0, (done, 0.0), {"train_loss": 2.0})
    assert len(read_lines(read)) < 1000 / 2


def test_a_run_never_waits_for_a_reader_of_its_progress(pipe):
    """The pipe holds far less than this."""
    _, write = pipe
    answers = Answers(write)
    for done in range(10_000):
        answers.progress(0, (done, 0.0), {"val_error": 12.5})


def test_nobody_reads_is_no_error():
    read, write = os.pipe()
    os.close(read)
    answers = Answers(write)
    answers.progress(0, (1, 0.0), {"val_error": 12.5})
    answers.ended()
    os.close(write)


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_jobs_come_until_the_pipe_ends(cut):
    """Also in the middle of one, as where the runner was killed."""
    jobs = [Job((Run("a", f"seed {i}", f"runs/{i}", ml_collections.ConfigDict()),)) for i in (1, 2)]
    first, second = (f"{job.dump()}\n".encode() for job in jobs)
    whole = first + (second[: len(second) - cut] if cut else second)
    found = [job.dump() for job in received(io.BytesIO(whole))]
    assert found == [job.dump() for job in jobs[: 1 if cut else 2]]


def test_command_starts_a_worker():
    assert command(5, (2, 3))[-3:] == ["lbsgd.experiments.running.worker", "5", "2,3"]


@pytest.mark.parametrize(
    ("length", "done", "epoch", "fraction"),
    [
        ({"total_steps": 200}, 50, 0.7, 0.25),
        ({"total_epochs": 4.0}, 50, 1.0, 0.25),
        ({"total_epochs": 4.0}, 50, 4.01, 1.0),
        ({"total_examples": 1000, "batch_size": 4}, 50, 1.0, 0.2),
        ({"total_examples": 1000, "batch_growth.sizes": (64,)}, 50, 1.0, 0.0),
        ({"total_examples": 1000, "batch_growth.in_place_of_decay": True}, 50, 1.0, 0.0),
    ],
)
def test_fraction_of_a_run_follows_from_its_length(length, done, epoch, fraction):
    config = default_config()
    config.update_from_flattened_dict(length)
    assert fraction_done(config, done, epoch) == fraction
