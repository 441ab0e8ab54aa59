"""Batches loaded ahead: how far, in which order, how it ends; and batches made on the devices."""

import contextlib
import pathlib
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from hanging import HANG_SECONDS
from scipy import stats

from lbsgd.data.pipeline import AHEAD, LoadJob, Prefetch
from lbsgd.data.repeated import RepeatedBatches, random_batch
from lbsgd.workers.placement import place

ROOT = pathlib.Path(__file__).parent.parent.parent
PLACEMENT = place(4, 1, devices=2)
TINY = 1e-6  # the chance that a good generator fails a statistical test


def nothing() -> None:
    pass


def job(number: int, *parts) -> LoadJob:
    return LoadJob({"label": np.full((1, 4, 1), number, np.int32)}, parts or (nothing,))


def placed(jobs):
    """As `Prefetch` takes them."""
    return ((job, PLACEMENT) for job in jobs)


def number(batch) -> int:
    return int(np.asarray(batch["label"])[0, 0, 0])


def wait_until(holds) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def torn() -> None:
    raise ValueError("row 7 is torn")


def torn_jobs(jobs):
    yield from jobs
    torn()


@pytest.fixture
def left_over():
    """Threads that the test has started and that are still there."""
    before = set(threading.enumerate())

    def started() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    return started


def wait_until_full(batches: Prefetch) -> None:
    """Until it loads no further of its own accord."""
    wait_until(lambda: batches.ready)
    time.sleep(0.2)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_slow_consumer_has_few_batches_loaded_ahead(threads):
    """Two that wait, one that is loaded, and one that the threads without a row go on with."""
    started, asked = [], 0

    def jobs():
        for i in range(40):
            started.append((i + 1, asked))
            yield job(i)

    batches = Prefetch(placed(jobs()), threads)
    for i in range(40):
        wait_until(lambda i=i: batches.ready and len(started) >= min(i + AHEAD, 40))
        time.sleep(0.2 if i == 0 else 0.002)  # for it to run on, if it would
        asked += 1
        assert number(next(batches)) == i
    assert max(count - taken for count, taken in started) <= AHEAD + 2


def test_two_batches_wait_on_the_devices():
    shape = (1, 4, 17)  # of no other array
    arrays = [{"label": np.full(shape, i, np.int32)} for i in range(10)]
    batches = Prefetch(placed(LoadJob(a, (nothing,)) for a in arrays), threads=2)

    def on_devices() -> int:
        return sum(array.shape == shape for array in jax.live_arrays())

    wait_until(lambda: on_devices() == AHEAD)
    time.sleep(0.2)  # for it to run on, if it would
    assert on_devices() == AHEAD == 2
    batches.close()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_batches_come_in_order_whichever_is_loaded_first(threads):
    """The parts of each second batch are slow."""
    filled = []

    def part(i: int, row: int) -> None:
        time.sleep(0.004 * (i % 2))
        filled.append((i, row))

    jobs = [job(i, *(lambda i=i, r=r: part(i, r) for r in range(5))) for i in range(8)]
    for i, batch in enumerate(Prefetch(placed(jobs), threads)):
        assert number(batch) == i
        assert {(i, row) for row in range(5)} <= set(filled)
    assert sorted(filled) == [(i, row) for i in range(8) for row in range(5)]


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("parts", [(torn,), (nothing, torn, nothing), (torn, torn)])
def test_an_error_does_not_wait_for_later_batches(threads, parts):
    """The next two are never loaded while it has not come out."""
    release, late = threading.Event(), []

    def stuck() -> None:
        late.append(release.wait(HANG_SECONDS))

    batches = Prefetch(placed([job(0), job(1, *parts), job(2, stuck), job(3, stuck)]), threads)
    taken = []
    with pytest.raises(ValueError, match=r"^row 7 is torn$"):
        taken += [number(next(batches)) for _ in range(2)]
    assert late == []
    for _ in range(3):  # whoever asks again
        with pytest.raises(ValueError, match=r"^row 7 is torn$"):
            next(batches)
    release.set()


def test_an_error_in_making_a_job_comes_out():
    with pytest.raises(ValueError, match=r"^row 7 is torn$"):
        list(Prefetch(placed(torn_jobs([job(0), job(1)])), threads=2))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_after_the_last_batch_there_is_none_however_often_one_asks(count):
    batches = Prefetch(placed(map(job, range(count))), threads=2)
    assert [number(batch) for batch in batches] == list(range(count))
    for _ in range(3):
        assert batches.ready
        assert next(batches, None) is None


def test_ready_says_whether_the_next_batch_is_there():
    events = [threading.Event() for _ in range(3)]
    jobs = [job(i, lambda e=event: e.wait(HANG_SECONDS)) for i, event in enumerate(events)]
    batches = Prefetch(placed(jobs), threads=2)
    for i, event in enumerate(events):
        assert not batches.ready
        event.set()
        wait_until(lambda: batches.ready)
        assert number(next(batches)) == i


@pytest.mark.parametrize("taken", [0, 1, 5, 10])
@pytest.mark.parametrize("threads", [1, 7])
@pytest.mark.parametrize("full", [False, True])
def test_closing_ends_the_threads(left_over, taken, threads, full):
    """At work or waiting for room, in the middle and at the end; once more does no harm."""
    batches = Prefetch(placed(map(job, range(10))), threads)
    for _ in range(taken):
        next(batches)
    if full:
        wait_until_full(batches)
    batches.close()
    batches.close()
    for thread in left_over():
        thread.join(HANG_SECONDS)
    assert not left_over()


@pytest.mark.parametrize("jobs", [[job(0), job(1)], [job(0, torn)]])
def test_the_end_and_an_error_end_the_threads_too(left_over, jobs):
    batches = Prefetch(placed(jobs), threads=3)
    with contextlib.suppress(ValueError):
        list(batches)
    for thread in left_over():
        thread.join(HANG_SECONDS)
    assert not left_over()


def test_closing_lets_threads_finish_what_they_are_at(left_over):
    begun, release, finished = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        release.wait(HANG_SECONDS)
        finished.append(0)

    jobs = [job(0, slow, slow, slow), job(1, slow)]
    batches = Prefetch(placed(jobs), threads=1)
    begun.wait(HANG_SECONDS)
    batches.close()
    assert not finished
    release.set()
    for thread in left_over():
        thread.join(HANG_SECONDS)
    assert not left_over()
    assert len(finished) == 1  # what nobody was at is left


ABANDON = """
import sys
import time
import numpy as np
from lbsgd.data.pipeline import LoadJob, Prefetch
from lbsgd.workers.placement import place

part, pause = map(float, sys.argv[1:])

def jobs():
    while True:
        yield LoadJob({"label": np.zeros((1, 4, 1), np.int32)}, [lambda: time.sleep(part)] * 3)

batches = Prefetch(((job, place(4, 1, devices=1)) for job in jobs()), threads=2)
print(next(batches)["label"].shape)
time.sleep(pause)
raise KeyboardInterrupt
"""


@pytest.mark.parametrize("seconds", [("0.1", "0"), ("0", "0.3")], ids=["at work", "full"])
def test_a_process_that_abandons_its_batches_ends(seconds):
    """Without `close`: nobody waits for threads that would load for ever."""
    done = subprocess.run(
        [sys.executable, "-c", ABANDON, *seconds],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.stdout == "(1, 4, 1)\n"
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def shapes(count: int) -> dict[str, jax.ShapeDtypeStruct]:
    slots, sharding = (2, 4, count), PLACEMENT.batch_sharding
    return {
        "image": jax.ShapeDtypeStruct((*slots, 8, 8, 3), np.uint8, sharding=sharding),
        "label": jax.ShapeDtypeStruct(slots, np.int32, sharding=sharding),
    }


@pytest.mark.parametrize("classes", [2, 100])
def test_a_random_batch_is_made_where_it_is_held(classes):
    asked = shapes(500)
    batch = random_batch(asked, classes, seed=3)
    assert batch.keys() == asked.keys()
    for key, array in batch.items():
        assert (array.shape, array.dtype) == (asked[key].shape, asked[key].dtype)
        assert array.sharding.is_equivalent_to(PLACEMENT.batch_sharding, array.ndim)
    for values, bound in ((batch["image"], 256), (batch["label"], classes)):
        values = np.asarray(values).ravel()
        counts = np.bincount(values, minlength=bound)
        assert len(counts) == bound
        expected = values.size / bound
        assert ((counts - expected) ** 2 / expected).sum() <= stats.chi2.isf(TINY, bound - 1)


def test_random_batches_are_a_function_of_the_seed():
    here, again, other = (random_batch(shapes(10), 1000, seed) for seed in (3, 3, 4))
    for key in here:
        np.testing.assert_array_equal(here[key], again[key])
        assert (np.asarray(here[key]) != np.asarray(other[key])).mean() > 0.9


def test_one_batch_repeated():
    batch = random_batch(shapes(1), 10, seed=0)
    batches = RepeatedBatches([batch] * 3)
    for _ in range(3):
        assert batches.ready
        assert next(batches) is batch
    for _ in range(3):
        assert batches.ready
        assert next(batches, None) is None
    batches.close()
