"""Names how the values of k workers become one: their mean, sum or maximum, or something else."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Reduction(NamedTuple):
    """Reduces workers' values, trees of arrays, in a way of its own.

    The moments of what the workers saw, say, are merged by Chan's formula, which no mean is.

    Attributes:
      combine: of two trees one; associative and commutative, for where the workers lie decides the
        order.
      identity: a tree that changes nothing when it is combined; its leaves are numbers or arrays.
      finish: makes the scalar that is reported.
    """

    combine: Callable[[Any, Any], Any]
    identity: Any
    finish: Callable[[Any], Any] = lambda tree: tree


NAMED = ("mean", "sum", "max")
# One of those words, or a reduction.
How = str | Reduction
