"""Says when statistics of curvature are refreshed (Osawa et al. 2020, Algorithm 2).

Each statistic X has an interval of its own. When refreshed, it is compared with the two before:

    similar(X, Y)     |X - Y| < alpha |Y|, by Frobenius norms
    interval          max(1, D1 // 2)   where X is not similar to the last one
                      D1                where it is, and not to the one before that
                      D1 + D2           where it is similar to both: they grow as Fibonacci's

with D1 and D2 the last two intervals. Until the next refresh it is neither computed, nor reduced,
nor inverted.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int


class Intervals(NamedTuple):
    """Holds the intervals of some statistics, int32 `[n]` each.

    Attributes:
      last, before: D1 and D2, in updates.
      due_at: the update index of the next refresh.
    """

    last: Int[Array, " n"]
    before: Int[Array, " n"]
    due_at: Int[Array, " n"]


class Distances(NamedTuple):
    """Holds what similarity is told by: squares of Frobenius norms, `[n]` each.

    Attributes:
      from_last, from_before: |X - Y|^2, with Y the last refresh and the one before.
      last, before: |Y|^2 of these.
    """

    from_last: Float[Array, " n"]
    from_before: Float[Array, " n"]
    last: Float[Array, " n"]
    before: Float[Array, " n"]


def first_intervals(count: int) -> Intervals:
    """Makes those at the start, where all are due."""
    # Arrays of their own, for a step is given the memory of all of them for the next state.
    return Intervals(*(jnp.full(count, number, jnp.int32) for number in (1, 1, 0)))


def is_due(intervals: Intervals, update_index: Int[Array, ""]) -> Bool[Array, " n"]:
    """Tells which statistics are to be refreshed in an update."""
    return update_index >= intervals.due_at


def advanced(
    intervals: Intervals, distances: Distances, update_index: Int[Array, ""], alpha: ArrayLike
) -> Intervals:
    """Says when those that are refreshed in this update are to be next.

    Args:
      distances: of those that are not due are not looked at.
    """
    threshold = jnp.square(jnp.asarray(alpha, distances.last.dtype))
    as_last = distances.from_last < threshold * distances.last
    as_before = distances.from_before < threshold * distances.before
    shrunk = jnp.maximum(intervals.last // 2, 1)
    grown = intervals.last + intervals.before
    interval = jnp.where(as_last, jnp.where(as_before, grown, intervals.last), shrunk)
    new = Intervals(interval, intervals.last, update_index + interval)
    due = is_due(intervals, update_index)
    return Intervals(*(jnp.where(due, a, b) for a, b in zip(new, intervals)))
