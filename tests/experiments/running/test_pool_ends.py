"""Kills the processes of a pool, and looks at what it makes of that."""

import json
import pathlib
import signal

import pytest
from hanging import HANG_SECONDS
from tiny_sweep import write_sweep

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.running.job_queue import Queue
from lbsgd.experiments.running.pool import Message, Pool, Worker
from lbsgd.experiments.running.session import board_of
from lbsgd.experiments.running.shares import Share
from lbsgd.experiments.sweep import read_sweep
from lbsgd.system.errors import ConfigError


class Said(list):
    """A display that keeps its lines."""

    line = list.append

    def refresh(self) -> None:
        pass


@pytest.fixture
def queue(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "tiny.py", settings="seeds=1"))
    return Queue(sweep, SweepFolder(tmp_path / "runs"), sweep.rows)


@pytest.fixture
def pool(tmp_path, queue):
    sweep = read_sweep(f"{tmp_path}/tiny.py")
    board = board_of(sweep, SweepFolder(tmp_path / "runs"), sweep.rows)
    return Pool(queue, board, Said(), [Share((), {})], tmp_path)


def killed(pool: Pool, queue: Queue, tmp_path: pathlib.Path) -> Worker:
    """A worker that was killed as soon as it had its job, and what the pool hears of that."""
    worker = Worker(0, Share((), {}), tmp_path / "worker_0.log", pool._events)
    pool._workers[0] = worker
    pool._start(worker, queue.next())
    worker.stop(signal.SIGKILL)
    pool._handle(pool._events.get(timeout=HANG_SECONDS))
    return worker


def test_a_process_that_ends_after_its_run_was_complete_left_nothing(pool, queue, tmp_path):
    workdir = tmp_path / "runs" / "rate=0.1" / "seed_0"
    workdir.mkdir(parents=True)
    result = {"complete": True, "headline": "val_error", "final": 1.5}
    metrics = {"val_error": {"final": 1.5, "unit": "%", "rises": False, "words": "error"}}
    (workdir / "result.json").write_text(json.dumps({**result, "metrics": metrics}))
    killed(pool, queue, tmp_path)
    assert pool._display == ["rate=0.1 seed 0: validation error 1.50% (1 of 2 runs done)"]
    assert [job.row for job in queue] == ["rate=0.2, twice"]


def test_a_log_that_cannot_be_written_is_a_line(pool, tmp_path):
    (tmp_path / "worker_0.log").mkdir()
    with pytest.raises(ConfigError, match=r"worker_0\.log cannot be written \(Is a directory\)"):
        pool.run()


def test_what_a_process_said_may_come_after_its_end(pool, queue, tmp_path):
    worker = killed(pool, queue, tmp_path)
    said = ["rate=0.1 seed 0: its process ended (SIGKILL); it is started again"]
    assert pool._display == said
    pool._handle(Message(worker, {"ended": True}))
    assert pool._display == said
    assert [job.row for job in queue] == ["rate=0.1", "rate=0.2, twice"]
