"""When: update index <-> examples seen <-> epoch, for any schedule of batch sizes.

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
    """A stretch of updates with one batch size, starting where the segment before it ended."""

    first_update: int
    first_example: int
    batch_size: int


def exact(number: float | Fraction) -> Fraction:
    """The number as it is written: 0.1 is one tenth, not the float nearest to it."""
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
        """One batch size for the whole run."""
        return cls.from_schedule(examples_per_epoch, [(0, batch_size)])

    @classmethod
    def from_schedule(
        cls, examples_per_epoch: int, schedule: Sequence[tuple[float | Fraction, int]]
    ) -> "Timeline":
        """Batch sizes by epoch: pairs (epoch, batch size), the first at epoch 0.

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
        """Batch sizes by update: pairs (whole update, batch size), the first at update 0.

        Raises:
          ValueError: sizes not positive, first update not 0, or updates not increasing.
        """
        starts = [int(start) for start, _ in schedule]
        _check_schedule(examples_per_epoch, starts, [size for _, size in schedule])
        segments = [Segment(0, 0, schedule[0][1])]
        for start, (_, size) in zip(starts[1:], schedule[1:]):
            segments.append(_after(segments[-1], start - segments[-1].first_update, size))
        return cls(examples_per_epoch, tuple(segments))

    def batch_size(self, update: int) -> int:
        """Number of examples kn in the minibatch of update `update`."""
        return self._segment_of_update(update).batch_size

    def examples_seen(self, update: int) -> int:
        """Examples seen before update `update`: the position of its first example."""
        segment = self._segment_of_update(update)
        return segment.first_example + (update - segment.first_update) * segment.batch_size

    def epoch(self, update: int) -> float:
        """Epochs seen before update `update`, as a fraction."""
        return self.examples_seen(update) / self.examples_per_epoch

    def epoch_of(self, updates: int) -> int:
        """The epoch, counted from 1, at whose end or within which so many updates are done.

        Epoch m ends at the update nearest to its end: those after that of m - 1 belong to m.
        """
        last = -(-self.examples_seen(updates) // self.examples_per_epoch)
        return bisect.bisect_left(range(last), updates, key=self.update_at_epoch)

    def update_at_epoch(self, epoch: float | Fraction) -> int:
        """The update nearest to an epoch count: round(epoch * N / kn), ties to even."""
        return self.update_at_example(exact(epoch) * self.examples_per_epoch)

    def update_at_example(self, example: int | Fraction) -> int:
        """The update nearest to a number of examples seen."""
        starts = [segment.first_example for segment in self.segments]
        segment = self.segments[max(bisect.bisect_right(starts, example) - 1, 0)]
        return segment.first_update + _updates_until(segment, example)

    def sizes_between(self, start: int, stop: int) -> list[int]:
        """The batch sizes of updates start..stop-1, each once, in the order in which they come."""
        ends = [segment.first_update for segment in self.segments[1:]] + [stop]
        reached = [
            segment.batch_size
            for segment, end in zip(self.segments, ends)
            if max(segment.first_update, start) < min(end, stop)
        ]
        return list(dict.fromkeys(reached))

    def _segment_of_update(self, update: int) -> Segment:
        starts = [segment.first_update for segment in self.segments]
        return self.segments[max(bisect.bisect_right(starts, update) - 1, 0)]


def _check_schedule(
    examples_per_epoch: int, starts: Sequence[int | Fraction], sizes: Sequence[int]
) -> None:
    if examples_per_epoch <= 0 or any(size <= 0 for size in sizes):
        raise ValueError("examples_per_epoch and batch sizes must be positive")
    if not starts or starts[0] != 0 or any(b <= a for a, b in itertools.pairwise(starts)):
        raise ValueError("a batch-size schedule must start at 0 and increase")


def _after(segment: Segment, updates: int, batch_size: int) -> Segment:
    """The segment that follows so many updates of another."""
    return Segment(
        segment.first_update + updates,
        segment.first_example + updates * segment.batch_size,
        batch_size,
    )


def _updates_until(segment: Segment, example: int | Fraction) -> int:
    # Where the rounding of its start went past the example, the segment has no update before it.
    return max(round(Fraction(example - segment.first_example) / segment.batch_size), 0)
