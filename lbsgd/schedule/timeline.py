"""Converts update index <-> examples seen <-> epoch, for any schedule of batch sizes.

The update index t (from 0) is the only counter that a run stores. Whatever varies with time
(learning rate, data order, evaluations) is a function of it, computed here in exact integers.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class Segment:
    """Holds a stretch of updates with one batch size; it starts where the one before ended."""

    first_update: int
    first_example: int
    batch_size: int


def exact(number: float | Fraction) -> Fraction:
    """Takes a number as it is written: 0.1 is one tenth, not the float nearest to it."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Converts between the three clocks of a run.

    Minibatches follow each other in the stream of examples without a gap, so one may straddle
    two epochs and none is short.
    """

    examples_per_epoch: int
    segments: tuple[Segment, ...]

    @classmethod
    def constant(cls, examples_per_epoch: int, batch_size: int) -> "Timeline":
        """Makes the timeline of one batch size for the whole run."""
        return cls.from_schedule(examples_per_epoch, [(0, batch_size)])

    @classmethod
    def from_schedule(
        cls, examples_per_epoch: int, schedule: Sequence[tuple[float | Fraction, int]]
    ) -> "Timeline":
        """Makes the timeline of batch sizes by epoch: pairs (epoch, batch size), from epoch 0 on.

        Each boundary is rounded once to a whole update, and the next segment starts at the
        number of examples truly seen by then, so roundings do not add up.

        Raises:
          ValueError: sizes not positive, first epoch not 0, or epochs not increasing.
        """
        epochs = [exact(epoch) for epoch, _ in schedule]
        _check_schedule(examples_per_epoch, epochs, [size for _, size in schedule])
        segments = [Segment(0, 0, schedule[0][1])]
        for epoch, (_, size) in zip(epochs[1:], schedule[1:]):
            updates = _updates_until(segments[-1], epoch * examples_per_epoch)
            segments.append(_after(segments[-1], updates, size))
        return cls(examples_per_epoch, tuple(segments))

    @classmethod
    def from_updates(
        cls, examples_per_epoch: int, schedule: Sequence[tuple[float | Fraction, int]]
    ) -> "Timeline":
        """Makes the timeline of batch sizes by update: pairs (update index, batch size), from 0 on.

        Raises:
          ValueError: sizes not positive, first update not 0, or updates not increasing.
        """
        starts = [int(start) for start, _ in schedule]
        _check_schedule(examples_per_epoch, starts, [size for _, size in schedule])
        segments = [Segment(0, 0, schedule[0][1])]
        for start, (_, size) in zip(starts[1:], schedule[1:]):
            segments.append(_after(segments[-1], start - segments[-1].first_update, size))
        return cls(examples_per_epoch, tuple(segments))

    def batch_size(self, update_index: int) -> int:
        """Counts the examples kn in the minibatch of an update."""
        return self._segment_of_update(update_index).batch_size

    def examples_seen(self, update_index: int) -> int:
        """Counts the examples seen before an update: the position of its first example."""
        segment = self._segment_of_update(update_index)
        return segment.first_example + (update_index - segment.first_update) * segment.batch_size

    def epoch(self, update_index: int) -> float:
        """Counts the epochs seen before an update, as a fraction."""
        return self.examples_seen(update_index) / self.examples_per_epoch

    def epoch_of(self, updates: int) -> int:
        """Finds the epoch, counted from 1, at whose end or within which so many updates are done.

        Epoch m ends at the update nearest to its end: those after that of m - 1 belong to m.
        """
        last = -(-self.examples_seen(updates) // self.examples_per_epoch)
        return bisect.bisect_left(range(last), updates, key=self.update_at_epoch)

    def update_at_epoch(self, epoch: float | Fraction) -> int:
        """Finds the update index nearest to an epoch count: round(epoch * N / kn), ties to even."""
        return self.update_at_example(exact(epoch) * self.examples_per_epoch)

    def update_at_example(self, example: int | Fraction) -> int:
        """Finds the update index nearest to a number of examples seen."""
        starts = [segment.first_example for segment in self.segments]
        segment = self.segments[max(bisect.bisect_right(starts, example) - 1, 0)]
        return segment.first_update + _updates_until(segment, example)

    def sizes_between(self, start: int, stop: int) -> list[int]:
        """Lists the batch sizes of updates start..stop-1, each once, in order."""
        ends = [segment.first_update for segment in self.segments[1:]] + [stop]
        reached = [
            segment.batch_size
            for segment, end in zip(self.segments, ends)
            if max(segment.first_update, start) < min(end, stop)
        ]
        return list(dict.fromkeys(reached))

    def _segment_of_update(self, update_index: int) -> Segment:
        """Finds the segment that an update is in."""
        starts = [segment.first_update for segment in self.segments]
        return self.segments[max(bisect.bisect_right(starts, update_index) - 1, 0)]


def _check_schedule(
    examples_per_epoch: int, starts: Sequence[int | Fraction], sizes: Sequence[int]
) -> None:
    """Raises ValueError where batch sizes and their starts make no timeline."""
    if examples_per_epoch <= 0 or any(size <= 0 for size in sizes):
        raise ValueError("examples_per_epoch and batch sizes must be positive")
    if not starts or starts[0] != 0 or any(b <= a for a, b in itertools.pairwise(starts)):
        raise ValueError("a batch-size schedule must start at 0 and increase")


def _after(segment: Segment, updates: int, batch_size: int) -> Segment:
    """Makes the segment that follows so many updates of another."""
    return Segment(
        segment.first_update + updates,
        segment.first_example + updates * segment.batch_size,
        batch_size,
    )


def _updates_until(segment: Segment, example: int | Fraction) -> int:
    """Rounds the time from a segment's start to an example to whole updates."""
    # Where the rounding of its start went past the example, the segment has no update before it.
    return max(round(Fraction(example - segment.first_example) / segment.batch_size), 0)
