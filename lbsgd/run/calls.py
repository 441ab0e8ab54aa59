"""Says which updates of a run are made in one call of a compiled program: updates_per_call.

A call holds as many as the config says, or one: between its updates nothing can be saved, evaluated
or measured, and all are of one batch size and image size. So the run is the one that it is with a
call for each update.
"""

from collections.abc import Iterator
from typing import NamedTuple

from lbsgd.run.plan import Plan
from lbsgd.workers.placement import Placement


class Call(NamedTuple):
    """Names the updates of a call.

    Attributes:
      first: the index of its first update.
      updates: how many it has.
    """

    first: int
    updates: int

    @property
    def done(self) -> int:
        """Returns how many updates are done after it."""
        return self.first + self.updates


def calls_between(plan: Plan, start: int, stop: int) -> Iterator[Call]:
    """Yields the calls that make the updates start..stop-1."""
    count = plan.config.updates_per_call
    for first, end in _stretches(plan, start, stop):
        while first < end:
            call = Call(first, count if end - first >= count else 1)
            yield call
            first = call.done


def programs_between(
    plan: Plan, start: int, stop: int
) -> list[tuple[Placement, tuple[int, int, int], int]]:
    """Lists what the calls of the updates start..stop-1 are compiled for, each once, in order.

    Returns:
      placement, image shape `(h, w, c)`, and the number of updates.
    """
    count = plan.config.updates_per_call
    found = []
    for first, end in _stretches(plan, start, stop):
        whole, rest = divmod(end - first, count)
        kind = plan.placement_of(first), plan.image_shape_of(first)
        found += [(*kind, count)] * bool(whole) + [(*kind, 1)] * bool(rest)
    return list(dict.fromkeys(found))


def explain_calls(plan: Plan) -> list[str]:
    """Says how many updates are made in calls of several, where the config asks for them."""
    count, total = plan.config.updates_per_call, plan.total_updates
    if count == 1:
        return []
    within = sum((end - first) // count * count for first, end in _stretches(plan, 0, total))
    if not within:
        return [
            f"calls: none of {count:,} updates, for evaluations, checkpoints, measurements and new "
            "sizes of batches and images leave no room for one; each update is a call"
        ]
    alone = f"; {total - within:,} before evaluations and the like are calls of one"
    return [f"calls: {within:,} updates in calls of {count:,}{alone if within < total else ''}"]


def _stretches(plan: Plan, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yields the stretches first..end-1 of the updates start..stop-1 that a call may lie within."""
    measured = plan.measurements
    # Numbers of updates done, after which there is something to do.
    ends = plan.evaluate_after | plan.save_after | measured.confusion
    # Updates that are looked at for themselves, before they are made or after.
    alone = measured.workers | measured.layers
    ends |= alone | {done - 1 for done in alone}
    # Update indices from which on batches or images have other sizes.
    ends |= {segment.first_update for segment in plan.timeline.segments}
    ends |= {first for first, _ in plan.image_sizes.starts}
    within = sorted(end for end in ends if start < end < stop)
    for first, end in zip([start, *within], [*within, stop]):
        if first < end:
            yield first, end
