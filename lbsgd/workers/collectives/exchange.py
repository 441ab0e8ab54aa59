"""Exchanges arrays `[n]` between ranks, within `jax.shard_map`: what all-reduces are made of.

Each takes the ranks of a line apart, n elements to one segment a rank (reduce-scatter), gives the
segment's sum to `inner`, and puts together what that returns (all-gather). So an all-reduce over a
grid is an exchange over rows whose `inner` is an exchange over columns. The innermost is done once
for each segment, by the rank that has its sum: all ranks end with the same bits.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from lbsgd.workers.collectives.topology import Lines, block_sizes

# Sums as they cross: of the sums' own type, or integers of 16 bits.
Packed = Shaped[Array, " _"]
# Sums of a segment -> packed, of the same shape.
Inner = Callable[[Float[Array, " segment"]], Packed]
Moves = Iterable[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Wire:
    """Moves numbers over the links between ranks.

    Attributes:
      axis: name or names of the mesh axes whose devices are the ranks, in row-major order.
      dtype: a type of 16 bits for what crosses; sums are float32. None for the sums' own type.
    """

    axis: Any
    dtype: Any = None

    def pack(self, x: Float[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """Converts the sums x to what crosses."""
        if self.dtype is None:
            return x
        # As integers, for XLA may compute in float32 what is written in 16 bits: it would send
        # float32 on some backends, and leave a rank's own copy unrounded.
        return lax.bitcast_convert_type(x.astype(self.dtype), jnp.uint16)

    def unpack(self, x: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Converts what crossed back to sums."""
        if self.dtype is None:
            return x
        return lax.bitcast_convert_type(x, self.dtype).astype(jnp.float32)

    def move(
        self, packed: Shaped[Array, "*shape"], lines: Lines, moves: Moves
    ) -> Shaped[Array, "*shape"]:
        """Sends from positions to positions in all lines; who is sent nothing gets zeros."""
        moves = list(moves)
        pairs = [(line[a], line[b]) for line in lines for a, b in moves]
        return lax.ppermute(packed, self.axis, pairs)

    def position(self, lines: Lines) -> Int[Array, ""]:
        """Finds this rank's position in its line."""
        # A table of all ranks, for a rank knows nothing but its number when the program runs.
        table = np.zeros(sum(map(len, lines)), np.int32)
        for line in lines:
            table[list(line)] = np.arange(len(line))
        return jnp.asarray(table)[lax.axis_index(self.axis)]


def ring(x: Float[Array, " n"], wire: Wire, lines: Lines, inner: Inner) -> Shaped[Array, " n"]:
    """Exchanges around each line (bucket algorithm): p - 1 steps of n / p there, and as many back.

    Args:
      x: n a multiple of p, the ranks of a line.
      inner: sums of a segment `[n / p]` -> packed, of the same shape.
    """
    count = len(lines[0])
    if count == 1:
        return inner(x)
    here, segments = wire.position(lines), x.reshape(count, -1)
    onwards = [(i, (i + 1) % count) for i in range(count)]

    def segment(distance: int) -> Float[Array, " segment"]:
        return lax.dynamic_index_in_dim(segments, (here - distance) % count, keepdims=False)

    # One segment behind its own, so that after p - 1 moves a rank has the sum of its own.
    total = segment(1)
    for distance in range(2, count + 1):
        total = segment(distance) + wire.unpack(wire.move(wire.pack(total), lines, onwards))
    # What comes of it is passed on packed, as it is: rounding again would cost other bits.
    piece = inner(total)
    whole = jnp.zeros((count, piece.size), piece.dtype)
    whole = lax.dynamic_update_index_in_dim(whole, piece, here, 0)
    for distance in range(1, count):
        piece = wire.move(piece, lines, onwards)
        whole = lax.dynamic_update_index_in_dim(whole, piece, (here - distance) % count, 0)
    return whole.reshape(-1)


def direct(x: Float[Array, " n"], wire: Wire, lines: Lines, inner: Inner) -> Shaped[Array, " n"]:
    """Exchanges by the backend's own reduce-scatter and all-gather.

    Args:
      x: n a multiple of p, the ranks of a line.
      inner: sums of a segment `[n / p]` -> packed, of the same shape.
    """
    count, groups = len(lines[0]), [list(line) for line in lines]
    if count == 1:
        return inner(x)
    if wire.dtype is None:
        total = lax.psum_scatter(x, wire.axis, axis_index_groups=groups, tiled=True)
    else:
        # By all-to-all, for the backend's reduce-scatter would add in 16 bits.
        packed = wire.pack(x).reshape(count, -1)
        packed = lax.all_to_all(packed, wire.axis, 0, 0, axis_index_groups=groups)
        # One by one: XLA on a CPU takes 80 times as long for jnp.sum over the first axis.
        total = functools.reduce(jnp.add, list(wire.unpack(packed)))
    return lax.all_gather(inner(total), wire.axis, axis_index_groups=groups, tiled=True)


def binary_blocks(
    x: Float[Array, " n"], wire: Wire, lines: Lines, inner: Inner
) -> Shaped[Array, " n"]:
    """Exchanges by recursive halving and doubling within blocks of 2^j ranks, and between these.

    A line is cut into blocks by the binary digits of its length, largest first. Each block halves
    its segments with partners at distance 1, 2, 4, ... (Goyal et al. 2017, section 4.2; Thakur et
    al. 2005). Then each block's sums are added to those of the next larger block, from the smallest
    on; the means come back on the same way. With one block this is halving and doubling.

    Args:
      x: n a multiple of the largest block.
      inner: sums of a segment `[n / largest block]` -> packed, of the same shape.
    """
    here, sizes = wire.position(lines), block_sizes(len(lines[0]))
    # The sums of all levels are kept, since a smaller block joins at the level of its own size.
    totals = [x]
    for level in range(sizes[0].bit_length() - 1):
        totals.append(_halve(totals[-1], wire, lines, level, here))
    for small, large in reversed(list(zip(sizes[1:], sizes))):
        sent = _to_larger(totals[small.bit_length() - 1], wire, lines, small, large)
        # Without a mask: ranks outside of the larger block are sent zeros.
        totals[large.bit_length() - 1] += sent
    # All ranks run one program: outside of its block a mean is noise, which `mine` drops below.
    means = {sizes[0]: inner(totals[-1])}
    for small, large in zip(sizes[1:], sizes):
        means[small] = _to_smaller(means[large], wire, lines, small, large)
    whole = means[sizes[0]]
    for level in reversed(range(len(totals) - 1)):
        whole = _double(whole, wire, lines, level, here)
        if 1 << level in means:
            mine = (here >= _first(lines, 1 << level)) & (here < _end(lines, 1 << level))
            whole = jnp.where(mine, means[1 << level], whole)
    return whole


def _first(lines: Lines, block: int) -> int:
    """Finds the first position of the block: after the larger ones."""
    # The larger blocks are the bits of the length above this one's.
    return len(lines[0]) & -(2 * block)


def _end(lines: Lines, block: int) -> int:
    """Finds the position past the last of the block."""
    return len(lines[0]) & -block


def _partners(lines: Lines, level: int) -> Moves:
    """Pairs positions at distance 2^level within blocks that are larger than it."""
    # Neighbours first, while messages are large: these may share a host (Goyal et al., 4.2).
    return [(i, i ^ 1 << level) for i in range(_end(lines, 2 << level))]


def _halve(
    x: Float[Array, " n"], wire: Wire, lines: Lines, level: int, here: Int[Array, ""]
) -> Float[Array, " half"]:
    """Adds the partner's to the half of the sums that stays here; the other is sent to it."""
    halves, upper = x.reshape(2, -1), here >> level & 1
    kept = lax.dynamic_index_in_dim(halves, upper, keepdims=False)
    given = lax.dynamic_index_in_dim(halves, 1 - upper, keepdims=False)
    return kept + wire.unpack(wire.move(wire.pack(given), lines, _partners(lines, level)))


def _double(
    packed: Shaped[Array, " n"], wire: Wire, lines: Lines, level: int, here: Int[Array, ""]
) -> Shaped[Array, " double"]:
    """Joins `packed` and the partner's, in their order."""
    both = jnp.stack([packed, wire.move(packed, lines, _partners(lines, level))])
    return jnp.where((here >> level & 1) == 1, both[::-1], both).reshape(-1)


def _to_larger(
    total: Float[Array, " there"], wire: Wire, lines: Lines, small: int, large: int
) -> Float[Array, " here"]:
    """Sends the smaller block's sums to where they are added: `[n / small]` to `[n / large]`."""
    parts = wire.pack(total).reshape(large // small, -1)
    ways = _between(lines, small, large)
    sent = [wire.unpack(wire.move(part, lines, moves)) for part, moves in zip(parts, ways)]
    return functools.reduce(jnp.add, sent)  # all but one are zeros


def _to_smaller(
    packed: Shaped[Array, " there"], wire: Wire, lines: Lines, small: int, large: int
) -> Shaped[Array, " here"]:
    """Sends the means of the larger block to the smaller: `[n / large]` to `[n / small]`."""
    ways = _between(lines, small, large)
    parts = [wire.move(packed, lines, [(b, a) for a, b in moves]) for moves in ways]
    return jnp.concatenate(parts)


def _between(lines: Lines, small: int, large: int) -> list[Moves]:
    """Pairs, for each part of a smaller block's segment, who sends it with who adds it."""
    count = large // small
    bits = count.bit_length() - 1
    a, b = _first(lines, small), _first(lines, large)
    # Halving by the lowest bit first leaves rank r with the segment of its bits in reverse.
    reverse = [int(f"{part:0{bits}b}"[::-1], 2) for part in range(count)]
    return [[(a + s, b + s + small * reverse[part]) for s in range(small)] for part in range(count)]
