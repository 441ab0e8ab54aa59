"""Threads that take turns: one runs at a time, and whoever ends is waited for by nobody."""

import itertools
import random
import threading

import pytest

from lbsgd.experiments.turns import Turns

HANG_SECONDS = 60


def take_part(meetings, *, act=lambda: None):
    """Members that each meet so many times and then end; who was there, meeting by meeting.

    Args:
      meetings: of each member.
    """
    there, found, running = [], [], []

    def met():
        assert len(running) <= 1
        found.append(sorted(there))
        there.clear()
        act()

    turns = Turns(len(meetings), met)
    errors = {}

    def run(member):
        turns.begin(member)
        running.append(member)
        try:
            for _ in range(meetings[member]):
                there.append(member)
                running.remove(member)
                turns.meet(member)
                running.append(member)
                assert running == [member]
        except Exception as error:
            errors[member] = error
        finally:
            running.clear()
            turns.leave(member)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(meetings))]
    for thread in threads:
        thread.start()
    turns.start()
    for thread in threads:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive()
    return found, errors


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_all_that_are_left_meet_whoever_has_ended(count):
    random_ = random.Random(count)
    cases = [[random_.randrange(5) for _ in range(count)] for _ in range(20)]
    for meetings in [*cases, [0] * count, [3] * count]:
        found, errors = take_part(meetings)
        expected = [
            [i for i, most in enumerate(meetings) if most > at] for at in range(max(meetings))
        ]
        assert (found, errors) == (expected, {})


@pytest.mark.parametrize("fails_at", [0, 2])
def test_what_fails_in_a_meeting_fails_for_all(fails_at):
    numbers = itertools.count()

    def act():
        if next(numbers) == fails_at:
            raise ValueError("of the step")

    # The last of them has ended before, or ends the meeting that fails.
    for last in (0, fails_at, 9):
        numbers = itertools.count()
        _, errors = take_part([9, 9, last], act=act)
        assert {0, 1} <= errors.keys()
        assert {str(error) for error in errors.values()} == {"of the step"}
