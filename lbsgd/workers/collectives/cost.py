"""Computes what an all-reduce costs: rounds, bytes, roundings, and seconds.

Of n bytes, over p ranks.

The alpha-beta-gamma model: a message of n bytes takes alpha + n beta seconds, adding it gamma n; a
rank sends and receives one message at a time, both at once (Hockney 1994; Thakur et al. 2005).
Of "hierarchical", what happens within a host is counted as a ring. "psum" is the backend's own
business, and has no cost here; nor has the scalar that float16 sums besides each bucket by it, 4
bytes (`scaling.float16_scale`).
"""

import math
from fractions import Fraction
from typing import NamedTuple

from lbsgd.workers.collectives.topology import block_sizes, square_grid

Grid = tuple[int, int]


class Link(NamedTuple):
    """Says what a message costs.

    Attributes:
      alpha: seconds each.
      beta: seconds a byte.
      gamma: seconds to add a byte to the sum.
    """

    alpha: float
    beta: float
    gamma: float = 0.0


def steps(algorithm: str, ranks: int, grid: Grid | None = None) -> int:
    """Counts the rounds of messages, one after another.

    Of "binary_blocks" all rounds count, in and between blocks. No chain of messages that wait for
    each other is longer than 2 log2 of the largest block: the smaller ones are done sooner.

    Args:
      grid: (X, Y) of "torus_2d" and "hierarchical"; None for as square as possible.
    """
    x, y = _grid(algorithm, ranks, grid)
    if algorithm in ("ring", "torus_2d"):
        return 2 * (x - 1) + 2 * (y - 1)
    blocks = block_sizes(y)
    return 2 * (x - 1) + 2 * (blocks[0].bit_length() - 1) + 2 * (len(blocks) - 1)


def load(algorithm: str, ranks: int, grid: Grid | None = None) -> Fraction:
    """Computes the most bytes that a rank sends, in units of n."""
    x, y = _grid(algorithm, ranks, grid)
    if algorithm in ("ring", "torus_2d"):
        # Exact, to be compared with what compiled programs send.
        return Fraction(2 * (ranks - 1), ranks)
    return Fraction(2 * (x - 1), x) + max(block_loads(y).values()) / x


def block_loads(ranks: int) -> dict[int, Fraction]:
    """Computes the bytes that a rank of each binary block sends, in units of n, by block size."""
    # Between blocks a rank sends its segment of n / q once up, its sums, and once down, its means.
    blocks = block_sizes(ranks)
    return {
        q: Fraction(2 * (q - 1), q) + Fraction((q != blocks[0]) + (q != blocks[-1]), q)
        for q in blocks
    }


def roundings(algorithm: str, ranks: int, grid: Grid | None = None) -> int:
    """Counts how often at most a rank's gradient is rounded when it is sent in 16 bits.

    In partial sums too; one of them is of the mean. Each adds an error of
    at most half a unit in the last place. Here "psum" counts: it sends each gradient once.
    """
    if ranks == 1:
        return 0
    if algorithm == "psum":
        return 2
    x, y = _grid(algorithm, ranks, grid)
    if algorithm in ("ring", "torus_2d"):
        # A partial sum at each hop, and the mean.
        return x - 1 + y - 1 + 1
    # Rounded at each halving of its own block, and once for each larger one it is sent to.
    sums = 0
    for q in reversed(block_sizes(y)):
        sums = max(q.bit_length() - 1, sums + 1 if q != block_sizes(y)[-1] else 0)
    # Within a host once, if at all: each gradient is sent as it is, and summed where it arrives.
    return min(x - 1, 1) + sums + 1


def seconds(
    algorithm: str,
    ranks: int,
    size: float,
    link: Link,
    grid: Grid | None = None,
    between: Link | None = None,
) -> float:
    """Computes the seconds of one all-reduce.

    Args:
      size: n, bytes.
      link: between ranks; of "torus_2d" and "hierarchical", those of a row or host.
      between: of these two, between rows or hosts; None for the same.
    """
    x, y = _grid(algorithm, ranks, grid)
    within = _ring_seconds(x, size, link)
    if algorithm in ("ring", "torus_2d"):
        return within + _ring_seconds(y, size / x, between or link)
    return within + _blocks_seconds(y, size / x, between or link)


def lower_bounds(ranks: int, size: float, link: Link) -> Link:
    """Bounds the seconds of any all-reduce from below, for each of the link's three costs."""
    share = (ranks - 1) / ranks
    return Link(
        math.ceil(math.log2(ranks)) * link.alpha,
        2 * size * link.beta * share,
        size * link.gamma * share,
    )


def bus_bandwidth(operation: str, ranks: int, size: float, time: float) -> float:
    """Computes bytes/s as NCCL's tests count them, to compare with a link's whatever p is.

    Args:
      operation: "allreduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "reduce" or
        "allreduce_in_network".
      size: bytes of the whole array.
      time: seconds.
    """
    factors = {
        "allreduce": 2 * (ranks - 1) / ranks,
        "reduce_scatter": (ranks - 1) / ranks,
        "all_gather": (ranks - 1) / ranks,
        "all_to_all": (ranks - 1) / ranks,
        "broadcast": 1.0,
        "reduce": 1.0,
        "allreduce_in_network": (ranks - 1) / (ranks + 1),
    }
    return size / time * factors[operation]


def _grid(algorithm: str, ranks: int, grid: Grid | None) -> Grid:
    """Splits ranks into those in a ring, times those in a ring (of the torus) or binary blocks."""
    if algorithm == "ring":
        return ranks, 1
    if algorithm in ("halving_doubling", "binary_blocks"):
        return 1, ranks
    if algorithm in ("torus_2d", "hierarchical"):
        return grid or square_grid(ranks)
    raise KeyError(algorithm)


def _ring_seconds(ranks: int, size: float, link: Link) -> float:
    """Computes the seconds of p - 1 messages there, which are added, and as many back."""
    share = size * (ranks - 1) / ranks
    return 2 * (ranks - 1) * link.alpha + 2 * share * link.beta + share * link.gamma


def _blocks_seconds(ranks: int, size: float, link: Link) -> float:
    """Computes the seconds of binary blocks, of which each waits for its neighbours.

    For the next smaller one's sums, and then for the next larger one's means.

    A rank passes sums or means on between blocks only when it is done with its own block's
    reduce-scatter, and before its own block's all-gather.
    """
    blocks = block_sizes(ranks)
    done = 0.0  # when the block so far has its sums
    for smaller, q in zip((0, *reversed(blocks)), reversed(blocks)):
        own = math.log2(q) * link.alpha + size * (q - 1) / q * (link.beta + link.gamma)
        if smaller:
            # The smaller block's segment goes to several ranks here: each adds its own part of it.
            passed = link.alpha + size / smaller * link.beta + size / q * link.gamma
            own = max(own, done) + passed
        done = own
    end = 0.0
    for q, smaller in zip(blocks, (*blocks[1:], 0)):
        if smaller:
            done += link.alpha + size / smaller * link.beta
        end = max(end, done + math.log2(q) * link.alpha + size * (q - 1) / q * link.beta)
    return end
