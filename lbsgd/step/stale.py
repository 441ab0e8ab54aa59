"""Keeps statistics of curvature while they change little (Osawa et al. 2020, Algorithm 2).

Each statistic X has an interval of its own. When refreshed, it is compared with the two before:

    similar(X, Y)     |X - Y| < alpha |Y|, by Frobenius norms
    interval          max(1, D1 // 2)   where X is not similar to the last one
                      D1                where it is, and not to the one before that
                      D1 + D2           where it is similar to both: they grow as Fibonacci's

with D1 and D2 the last two intervals. Until the next refresh it is neither computed, nor reduced,
nor inverted.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int


class Kept(NamedTuple):
    """Holds the statistics of a run, each with its interval; all of them trees of one structure.

    Attributes:
      last, before: the values of the last two refreshes, zeros where there were none.
      interval, interval_before: D1 and D2, in updates; int32 scalars.
      due_at: the update index of the next refresh; int32 scalars.
    """

    last: Any
    before: Any
    interval: Any
    interval_before: Any
    due_at: Any


def nothing_kept(zeros: Any) -> Kept:
    """Makes the state at the start, where all are due.

    Args:
      zeros: like the statistics.
    """

    def scalars(number: int) -> Any:
        # Arrays of their own, for a step is given the memory of all of them for the next state.
        return jax.tree.map(lambda _: jnp.full((), number, jnp.int32), zeros)

    before = jax.tree.map(jnp.zeros_like, zeros)
    return Kept(zeros, before, scalars(1), scalars(1), scalars(0))


def due(kept: Kept, update_index: Int[Array, ""]) -> Any:
    """Tells which statistics are to be refreshed in an update: a tree of bools like them."""
    return jax.tree.map(lambda at: update_index >= at, kept.due_at)


def refreshed(kept: Kept, fresh: Any, update_index: Int[Array, ""], alpha: ArrayLike) -> Kept:
    """Takes in what was refreshed in an update, and says when each is to be next.

    Args:
      fresh: like the statistics; what is not due is not looked at.
    """

    def one(x: Any, *of_x: Any) -> Kept:
        old = Kept(*of_x)
        is_due = update_index >= old.due_at
        as_last, as_before = (_similar(x, y, alpha) for y in (old.last, old.before))
        shrunk = jnp.maximum(old.interval // 2, 1)
        grown = old.interval + old.interval_before
        interval = jnp.where(as_last, jnp.where(as_before, grown, old.interval), shrunk)
        new = Kept(x, old.last, interval, old.interval, update_index + interval)
        return jax.tree.map(lambda a, b: jnp.where(is_due, a, b), new, old)

    each = jax.tree.map(one, fresh, *kept)
    return Kept(
        *(jax.tree.map(lambda _, k, i=i: k[i], fresh, each) for i in range(len(Kept._fields)))
    )


def _similar(x: Any, y: Any, alpha: ArrayLike) -> Bool[Array, ""]:
    """Tells whether x differs from y by less than alpha of y."""
    return jnp.linalg.norm(x - y) < jnp.asarray(alpha, y.dtype) * jnp.linalg.norm(y)
