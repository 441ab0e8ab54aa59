"""Runs a pool whose workers end jobs, or end themselves: without processes, but for one."""

import contextlib
import json
import os
import queue
import signal
import time

import psutil
import pytest
from hanging import HANG_SECONDS
from tiny_sweep import ROWS, write_sweep

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import Status, note_failure, standing
from lbsgd.experiments.running import pool as pool_module
from lbsgd.experiments.running.job_queue import Queue
from lbsgd.experiments.running.pool import Message, Pool, Worker
from lbsgd.experiments.running.session import board_of
from lbsgd.experiments.running.shares import Share
from lbsgd.experiments.sweep import read_sweep
from lbsgd.launch.process_group import Ended
from lbsgd.system.files import any_path

SHARES = [Share((0,), {"CUDA_VISIBLE_DEVICES": "4"}), Share((1,), {"CUDA_VISIBLE_DEVICES": "2"})]
COMPLETE = {"complete": True, "headline": "val_error", "final": 2.5}


class Display:
    """Keeps the lines."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def refresh(self):
        pass


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Makes a pool for the tiny sweep, whose workers do with a job what `act` does."""
    sweep = read_sweep(write_sweep(tmp_path / "tiny.py"))
    folder = SweepFolder(tmp_path / "runs")

    def make(act):
        class Acting:
            """A worker without a process."""

            def __init__(self, number, share, log, events):
                self.number, self.log, self.job, self.over = number, log, None, False
                self.events = events
                made.workers.append((number, share))

            def give(self, job):
                self.job = job
                made.given.append(str(job))
                act(self, job)

            def end(self, code=0):
                if not self.over:
                    self.events.put(Ended(self.number, code, 0.0))
                self.over = True

            def finish(self):
                if not self.job:
                    self.end()

            def stop(self, number):
                made.signals.append((self.number, number))
                self.end(75)

        monkeypatch.setattr(pool_module, "Worker", Acting)
        board = board_of(sweep, folder, sweep.rows)
        made = Pool(Queue(sweep, folder, sweep.rows), board, Display(), SHARES, tmp_path)
        made.workers, made.given, made.signals, made.board = [], [], [], board
        return made

    return make


def completes(worker, job):
    (run,) = job.runs
    workdir = any_path(run.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "result.json").write_text(json.dumps(COMPLETE))
    worker.events.put(Message(worker, {"ended": True}))


def test_each_worker_has_a_share_of_its_own(pool):
    made = pool(completes)
    made.run()
    assert made.workers == list(enumerate(SHARES))
    assert sorted(made.given) == sorted(f"{name} seed {i}" for name in ROWS for i in range(2))
    assert made.board.done == 4
    assert not made.stopped


def test_a_run_that_fails_is_not_the_end(pool):
    def act(worker, job):
        if str(job) == "rate=0.1 seed 1":
            note_failure(any_path(job.runs[0].workdir), "no such folder")
            worker.events.put(Message(worker, {"ended": True}))
        else:
            completes(worker, job)

    made = pool(act)
    made.run()
    assert len(made.given) == 4  # each once
    counts = [line.count(Status.COMPLETE) for line in made.board.lines.values()]
    assert counts == [1, 2]
    (said,) = [line for line in made._display.lines if "failed" in line]
    assert said.startswith("rate=0.1 seed 1: failed: no such folder (")


@pytest.mark.parametrize(("gets_on", "starts"), [(0, 3), (1, 4), (4, 7)])
def test_a_job_that_kills_its_process_is_tried_as_long_as_it_gets_any_further(
    pool, gets_on, starts
):
    """In its first so many starts it saves a checkpoint more; then three come to nothing."""
    deadly = "rate=0.1 seed 0"

    def act(worker, job):
        if str(job) != deadly:
            completes(worker, job)
            return
        start = made.given.count(deadly)
        assert start < 19, "it is started for ever"
        if start <= gets_on:
            (any_path(job.runs[0].workdir) / "checkpoints" / str(start)).mkdir(parents=True)
        worker.end(-signal.SIGABRT)

    made = pool(act)
    made.run()
    assert made.given.count(deadly) == starts
    assert made.board.done == 4
    (failed,) = [
        (workdir, reason)
        for workdir, (_, reason, _) in made.board.lines["rate=0.1"].standings.items()
        if reason
    ]
    assert failed[1].startswith("its process ended (SIGABRT) 3 times in a row; ")
    assert standing(any_path(failed[0])).reason == failed[1]  # also for the next start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_has_all_workers_save_and_stop(pool, number):
    """No other job is begun, and what they had is to be resumed."""

    def act(worker, job):
        assert not made.stopped, f"{job} is begun after the signal"
        if worker.number == 1:
            worker.events.put(number)

    made = pool(act)
    made.run()
    assert made.stopped
    assert sorted(made.signals) == [(0, signal.SIGTERM), (1, signal.SIGTERM)]
    assert len(made.given) == 2
    assert made.board.done == 0


def test_a_process_keeps_to_its_share(tmp_path):
    core = max(os.sched_getaffinity(0))
    events = queue.SimpleQueue()
    share = Share((core,), {"NPROC": "1", "CUDA_VISIBLE_DEVICES": "4,2"})
    worker = Worker(3, share, tmp_path / "log", events)
    process = psutil.Process(worker._popen.pid)
    worker.finish()  # so that it ends in any case
    with contextlib.suppress(psutil.NoSuchProcess):
        while (kept := process.cpu_affinity()) != [core]:
            time.sleep(0.01)
        found = process.environ()
    assert kept == [core]
    assert {name: found[name] for name in share.environment} == share.environment
    worker.stop(signal.SIGKILL)
    ended = events.get(timeout=HANG_SECONDS)
    assert (ended.number, ended.code) == (3, -signal.SIGKILL)
