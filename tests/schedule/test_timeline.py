"""Timelines against a walk, update by update, in exact fractions; and against the paper."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbsgd.schedule.timeline import Timeline, exact

IMAGENET = 1_281_167
UPDATES = 60  # how far the walks go


def walk(num_examples: int, schedule: list[tuple[float, int]], updates: int) -> list[int]:
    """Examples seen before updates 0..updates, one minibatch after the other.

    A batch size gives way to the next at the update nearest to the next one's epoch, but the
    stream never runs backwards; half-way between two updates it is the even one, counted from
    where the batch size began.
    """
    waiting = [(Fraction(str(epoch)) * num_examples, size) for epoch, size in schedule]
    size = waiting.pop(0)[1]
    seen, since = [0], 0
    while len(seen) <= updates:
        while waiting and _is_nearest(waiting[0][0] - seen[-1], size, since):
            size, since = waiting.pop(0)[1], 0
        seen.append(seen[-1] + size)
        since += 1
    return seen


def _is_nearest(ahead: Fraction, size: int, since: int) -> bool:
    half = Fraction(size, 2)
    return ahead < half or (ahead == half and since % 2 == 0)


def nearest(seen: list[int], position: Fraction) -> set[int]:
    """The updates whose number of examples seen is nearest to `position`: one, or two in a tie."""
    distances = [abs(examples - position) for examples in seen]
    return {update for update, d in enumerate(distances) if d == min(distances)}


def test_an_epoch_has_the_updates_up_to_the_one_nearest_to_its_end():
    """Of 10 examples in minibatches of 4, 2.5 updates an epoch: 2.5, a tie, is 2; then 5, 7.5."""
    timeline = Timeline.constant(10, 4)
    assert [timeline.epoch_of(t) for t in range(11)] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]


def test_an_update_of_several_epochs_belongs_to_the_first_that_it_ends():
    """Of 10 examples in minibatches of 20: epochs 1 to 6 end with updates 0, 1, 2, 2, 2, 3."""
    timeline = Timeline.constant(10, 20)
    assert [timeline.epoch_of(t) for t in range(4)] == [0, 2, 3, 6]


sizes = st.integers(1, 200)
gaps = st.integers(1, 3000).map(lambda thousandths: Fraction(thousandths, 1000))


@st.composite
def schedules(draw):
    """Batch sizes by epoch; boundaries may lie much closer than one update."""
    count = draw(st.integers(1, 5))
    epochs = [Fraction(0)]
    for _ in range(count - 1):
        epochs.append(epochs[-1] + draw(gaps))
    return [(float(epoch), draw(sizes)) for epoch in epochs]


@pytest.mark.parametrize(
    ("epoch", "batch_size", "update"),
    [
        (5, 8192, 782),  # the warmup of Goyal et al.
        (30, 8192, 4692),
        (60, 8192, 9384),
        (80, 8192, 12511),
        (90, 8192, 14075),  # of 14075.3
        (90, 256, 450410),  # of 450410.3
        (5, 256, 25023),
        (30, 256, 150137),
    ],
)
def test_updates_of_the_paper(epoch, batch_size, update):
    timeline = Timeline.constant(IMAGENET, batch_size)
    assert timeline.update_at_epoch(epoch) == update
    assert abs(Fraction(update * batch_size, IMAGENET) - epoch) <= Fraction(
        batch_size, 2 * IMAGENET
    )


@given(st.integers(1, 5000), sizes, st.integers(0, 10**7))
@settings(deadline=None)
def test_constant_timeline_counts_whole_minibatches(num_examples, batch_size, update):
    timeline = Timeline.constant(num_examples, batch_size)
    assert timeline.batch_size(update) == batch_size
    assert timeline.examples_seen(update) == update * batch_size
    assert timeline.epoch(update) == float(Fraction(update * batch_size, num_examples))


@given(st.integers(1, 5000), sizes, st.integers(0, 10**6))
@settings(deadline=None)
def test_constant_timeline_rounds_ties_to_even(num_examples, batch_size, thousandths):
    epoch = Fraction(thousandths, 1000)
    updates, rest = divmod(epoch * num_examples, batch_size)
    up = 2 * rest > batch_size or (2 * rest == batch_size and updates % 2 == 1)
    timeline = Timeline.constant(num_examples, batch_size)
    assert timeline.update_at_epoch(epoch) == updates + up


@given(st.integers(1, 500), schedules())
@example(100, [(0, 100), (0.6, 1), (0.61, 10)])  # the second boundary is past the third
@settings(deadline=None)
def test_segments_agree_with_a_walk(num_examples, schedule):
    timeline = Timeline.from_schedule(num_examples, schedule)
    seen = walk(num_examples, schedule, UPDATES)
    assert [timeline.examples_seen(t) for t in range(UPDATES + 1)] == seen
    assert [timeline.batch_size(t) for t in range(UPDATES)] == list(np.diff(seen))


@given(st.integers(1, 500), schedules(), st.integers(0, 10**4))
@settings(deadline=None)
def test_no_example_is_dropped(num_examples, schedule, update):
    timeline = Timeline.from_schedule(num_examples, schedule)
    after = timeline.examples_seen(update + 1)
    assert after - timeline.examples_seen(update) == timeline.batch_size(update)


@given(st.integers(1, 500), schedules(), st.fractions(0, 1, max_denominator=1000))
@example(100, [(0, 100), (0.6, 1), (0.61, 10)], Fraction(1, 2))
@settings(deadline=None)
def test_update_at_an_example_is_the_nearest(num_examples, schedule, part):
    timeline = Timeline.from_schedule(num_examples, schedule)
    seen = walk(num_examples, schedule, UPDATES)
    position = part * seen[-1]
    assert timeline.update_at_example(position) in nearest(seen, position)
    assert timeline.update_at_epoch(position / num_examples) in nearest(seen, position)


@given(st.integers(1, 500), schedules(), st.integers(0, 10**6))
@settings(deadline=None)
def test_update_comes_back_from_its_examples_and_epoch(num_examples, schedule, update):
    timeline = Timeline.from_schedule(num_examples, schedule)
    examples = timeline.examples_seen(update)
    assert timeline.update_at_example(examples) == update
    assert timeline.update_at_epoch(Fraction(examples, num_examples)) == update


def test_segments_start_at_the_true_offset():
    """10 epochs of 1000 at 64 are 156.25 updates, so 9984 examples; the rest 10016 / 32 = 313.

    Counted from the nominal 10000 it would be 312.5, which rounds to 312.
    """
    timeline = Timeline.from_schedule(1000, [(0, 64), (10, 32), (20, 128)])
    starts = [(s.first_update, s.first_example) for s in timeline.segments]
    assert starts == [(0, 0), (156, 9984), (469, 20000)]


def test_roundings_do_not_add_up():
    """Each of 999 boundaries is within half a minibatch of its epoch."""
    schedule = [(Fraction(epoch, 7), 10 + epoch % 2) for epoch in range(1000)]
    timeline = Timeline.from_schedule(1003, schedule)
    for (epoch, _), segment, (_, before) in zip(schedule[1:], timeline.segments[1:], schedule):
        assert abs(segment.first_example - epoch * 1003) <= Fraction(before, 2)


def test_segments_of_a_schedule_do_not_run_backwards():
    timeline = Timeline.from_schedule(100, [(0, 100), (0.6, 1), (0.61, 10)])
    assert [s.first_update for s in timeline.segments] == [0, 1, 1]
    assert [s.first_example for s in timeline.segments] == [0, 100, 100]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (0.1, Fraction(1, 10)),
        (5, Fraction(5)),
        (1e-05, Fraction(1, 100_000)),
        (Fraction(1, 3), Fraction(1, 3)),
        (np.float64(0.1), Fraction(1, 10)),
    ],
)
def test_numbers_are_taken_as_written(written, value):
    assert exact(written) == value


def test_epochs_are_taken_as_written():
    """0.3 epochs of 50 in minibatches of 10 is 1.5, a tie; the float 0.3 is just below it."""
    assert 3 * exact(0.1) == exact(0.3)
    assert Timeline.constant(50, 10).update_at_epoch(0.3) == 2


@pytest.mark.parametrize(
    ("num_examples", "schedule", "message"),
    [
        (0, [(0, 1)], "must be positive"),
        (-5, [(0, 1)], "must be positive"),
        (10, [(0, 0)], "must be positive"),
        (10, [(0, 4), (1, -4)], "must be positive"),
        (10, [], "start at 0 and increase"),
        (10, [(1, 4)], "start at 0 and increase"),
        (10, [(0, 4), (2, 8), (1, 16)], "start at 0 and increase"),
        (10, [(0, 4), (2, 8), (2, 16)], "start at 0 and increase"),
    ],
)
def test_bad_schedules_are_errors(num_examples, schedule, message):
    with pytest.raises(ValueError, match=message):
        Timeline.from_schedule(num_examples, schedule)


@given(st.integers(1, 300), schedules(), st.integers(1, UPDATES))
@settings(deadline=None, max_examples=60)
def test_the_epoch_of_an_update_is_the_first_that_ends_no_earlier(num_examples, schedule, update):
    timeline = Timeline.from_schedule(num_examples, schedule)
    epoch = next(m for m in itertools.count(1) if timeline.update_at_epoch(m) >= update)
    assert timeline.epoch_of(update) == epoch
