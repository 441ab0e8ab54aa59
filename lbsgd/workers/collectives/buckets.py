"""Joins arrays of any shapes into buckets, flat arrays of about one size, and takes them apart."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Piece(NamedTuple):
    """Takes elements `start` to `stop` of the flat array `leaf`."""

    leaf: int
    start: int
    stop: int


def fill(sizes: Sequence[int], capacity: int) -> list[list[Piece]]:
    """Fills buckets of `capacity` elements, the last with what is left, with one or more pieces.

    Args:
      sizes: elements of each array; those of none are in no bucket.
    """
    buckets: list[list[Piece]] = []
    room = 0
    for leaf, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                buckets.append([])
                room = capacity
            # Leaves are cut where a bucket is full, or some would be as large as the largest leaf.
            stop = min(size, start + room)
            buckets[-1].append(Piece(leaf, start, stop))
            room -= stop - start
            start = stop
    return buckets


def in_buckets(
    f: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    leaves: Sequence[Float[Array, "..."]],
    capacity: int,
    multiple: int,
) -> list[Float[Array, "..."]]:
    """Applies `f`, which maps arrays `[n]` element by element, to leaves of one type as buckets.

    A bucket is made of the leaves it holds alone, so that it does not wait for others.

    Args:
      capacity: elements of a bucket.
      multiple: what n must be a multiple of; zeros are added for it.
    """
    flat = [leaf.reshape(-1) for leaf in leaves]
    # Not one long array that is cut: its end would wait for its start, and nothing could overlap.
    parts: list[list[jax.Array]] = [[] for _ in leaves]
    for bucket in fill([x.size for x in flat], capacity):
        joined = jnp.concatenate([flat[p.leaf][p.start : p.stop] for p in bucket])
        # Zeros change no sum, and not the largest |x|, which float16 is scaled by.
        done = f(jnp.pad(joined, (0, -joined.size % multiple)))
        ends = np.cumsum([p.stop - p.start for p in bucket])
        for piece, end in zip(bucket, ends):
            parts[piece.leaf].append(done[end - (piece.stop - piece.start) : end])
    return [
        # A leaf without elements is in no bucket, and `concatenate` refuses an empty list.
        jnp.concatenate(part).reshape(leaf.shape) if part else leaf
        for part, leaf in zip(parts, leaves)
    ]
