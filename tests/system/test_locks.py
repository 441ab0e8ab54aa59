"""One process has a folder at a time, on a disk and in a bucket."""

import concurrent.futures
import json
import os
import threading
import time

import pytest
from buckets import new_bucket
from fsspec.implementations.memory import MemoryFileSystem

from lbsgd.system import locks
from lbsgd.system.locks import lock_of

ME = f"process {os.getpid()} on "
# As many as there may be on a busy machine.
PATIENCE = 60


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    return tmp_path if request.param == "disk" else new_bucket()


@pytest.fixture
def bucket(monkeypatch):
    """Where a lock is silent soon, and renewed only when a test asks for it."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.05)
    monkeypatch.setattr(locks, "RENEW_SECONDS", 1000.0)
    return new_bucket()


def taken_when_free(lock) -> None:
    give_up = time.monotonic() + PATIENCE
    while lock.take():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_lock_is_had_by_one_and_tells_whose_it_is(folder):
    first, second = lock_of(folder), lock_of(folder)
    assert first.take() == ""
    assert second.take().startswith(ME)
    assert first.lost_to() == ""
    first.close()
    assert second.take() == ""
    second.close()


def test_a_lock_that_is_closed_leaves_nothing_in_a_bucket():
    folder = new_bucket()
    lock = lock_of(folder)
    lock.take()
    assert [p.name for p in (folder / ".lock").iterdir()] == ["1"]
    assert {"holder", "time"} <= json.loads((folder / ".lock" / "1").read_bytes()).keys()
    lock.close()
    assert folder.sizes() == {}


def test_a_lock_of_a_dead_process_is_taken_over(bucket):
    dead, lock = lock_of(bucket), lock_of(bucket)
    assert dead.take() == ""
    assert lock.take().startswith(ME)
    taken_when_free(lock)
    # It was only asleep, and must not go on as if it had the folder.
    assert dead.lost_to().startswith(ME)
    dead.close()
    assert lock.lost_to() == ""
    lock.close()
    assert bucket.sizes() == {}


def test_a_lock_that_is_renewed_is_not_taken_over(bucket):
    holder, other = lock_of(bucket), lock_of(bucket)
    assert holder.take() == ""
    for _ in range(10):
        assert other.take().startswith(ME)
        assert holder.lost_to() == ""  # which renews it
        time.sleep(0.06)
    holder.close()
    other.close()


def test_a_thread_renews_a_lock(bucket, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.01)
    lock = lock_of(bucket)
    lock.take()
    object_, seen = bucket / ".lock" / "1", set()
    give_up = time.monotonic() + PATIENCE
    while len(seen) < 3:
        seen.add(json.loads(object_.read_bytes())["renewals"])
        assert time.monotonic() < give_up
    lock.close()


def test_one_of_many_takes_over(bucket, monkeypatch):
    real, one_by_one = MemoryFileSystem.pipe_file, threading.Lock()

    def pipe_file(*args, **options):
        with one_by_one:  # what a bucket sees to, and this stand-in does not
            return real(*args, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    lock_of(bucket).take()
    waiting = [lock_of(bucket) for _ in range(8)]
    for lock in waiting:
        assert lock.take()
    time.sleep(0.1)
    together = threading.Barrier(8)

    def take(lock):
        together.wait()
        return lock.take()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(take, waiting)).count("") == 1


def test_a_lock_that_is_removed_is_lost(bucket):
    """By who takes its holder for dead, and starts another run there."""
    lock, other = lock_of(bucket), lock_of(bucket)
    lock.take()
    (bucket / ".lock" / "1").unlink()
    assert lock.lost_to() == "another run"
    other.take()
    assert lock.lost_to().startswith(ME)
    lock.close()
    assert other.lost_to() == ""
    other.close()


def test_a_bucket_that_does_not_answer_takes_no_lock_away(bucket, monkeypatch):
    lock = lock_of(bucket)
    lock.take()

    def refuse(*_):
        raise OSError(5, "no route")

    monkeypatch.setattr(type(bucket), "iterdir", refuse)
    assert lock.lost_to() == ""
    monkeypatch.undo()
    assert lock.lost_to() == ""
    lock.close()
