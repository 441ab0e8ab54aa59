"""Makes all-reduces by name: the mean of a tree over devices."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr
from lbsgd.workers.collectives import cost
from lbsgd.workers.collectives.buckets import in_buckets
from lbsgd.workers.collectives.exchange import Inner, Packed, Wire, binary_blocks, direct, ring
from lbsgd.workers.collectives.names import ALGORITHMS, DTYPES
from lbsgd.workers.collectives.scaling import float16_scale
from lbsgd.workers.collectives.topology import block_sizes, columns, host_grid, rows, square_grid

# A ResNet-50's gradient is four of these, so three can be under way while the rest is computed; on
# 32 servers of 50 Gbit/s and 50 us a bucket takes 10 ms, of which the longest ring waits 3.
BUCKET_BYTES = 32 * 2**20
# Each is compiled with a message for each of the algorithm's steps.
MOST_BUCKETS = 1000

Grid = tuple[int, int]


def allreduce(
    tree: Any,
    axis: Any,
    *,
    algorithm: str = "psum",
    dtype: str | None = None,
    bucket_bytes: int = BUCKET_BYTES,
    grid: tuple[int, ...] | None = None,
) -> Any:
    """Computes the MEAN of `tree` over the devices of a mesh axis, within `jax.shard_map`.

    Like `lax.pmean`, but by an algorithm of choice. The sum is of p arrays and is divided by p
    once, by the rank that has it. All devices end with the same bits.

    Args:
      tree: arrays of floating point.
      axis: name of the axis, or names: ranks are `lax.axis_index(axis)`.
      algorithm: one of `names.ALGORITHMS`. Without `dtype`, "psum" is one `lax.pmean` of the tree.
      dtype: one of `names.DTYPES` to send gradients and partial sums in; sums are float32, and so
        is what comes of larger types. None for each leaf's own type. In float16 each bucket is
        multiplied by a power of two, so that it fits (`scaling.float16_scale`).
      bucket_bytes: of leaves of one type that are reduced together.
      grid: see `resolve_grid`.

    Raises:
      ConfigError: the algorithm does not exist, or not for this number of devices.
      TypeError: there are integers in the tree.
    """
    ranks = lax.axis_size(axis)
    resolved = resolve_grid(algorithm, ranks, grid)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(
            f"unknown all-reduce dtype {short_repr(dtype)}; known: {', '.join(DTYPES)}"
        )
    if ranks == 1:
        # Past the checks: a mistake is found here, and not first on a larger machine.
        return tree
    if algorithm == "psum" and dtype is None:
        return lax.pmean(tree, axis)
    leaves, structure = jax.tree.flatten(tree)
    if not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        raise TypeError("the mean of integers is none; convert them first")
    # By type, for a bucket is one array. Of sixteen bits the sums are float32: adding thousands of
    # ranks in bfloat16 would lose what is below 1/256 of the sum.
    for kind in dict.fromkeys(leaf.dtype for leaf in leaves):
        wire = Wire(axis, dtype or (kind.name if kind.itemsize == 2 else None))
        reduce = functools.partial(_reduce_bucket, wire=wire, algorithm=algorithm, grid=resolved)
        which = [i for i, leaf in enumerate(leaves) if leaf.dtype == kind]
        multiple = segments(algorithm, resolved)
        # Whole segments, so that only the last bucket is padded.
        capacity = max(1, bucket_bytes // (kind.itemsize * multiple)) * multiple
        reduced = in_buckets(reduce, [leaves[i] for i in which], capacity, multiple)
        for i, leaf in zip(which, reduced):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _reduce_bucket(
    bucket: Float[Array, " n"], *, wire: Wire, algorithm: str, grid: Grid
) -> Float[Array, " n"]:
    """Computes the mean of a bucket over the ranks, in its type."""

    def reduced(x: Float[Array, " n"], last: Callable[[jax.Array], jax.Array]) -> jax.Array:
        # Packed once, by the rank that has the sum, so that all ranks unpack the same bits.
        packed = _exchange(x, wire, algorithm, grid, lambda total: wire.pack(last(total)))
        return wire.unpack(packed)

    ranks = math.prod(grid)
    if wire.dtype is None:
        return reduced(bucket, lambda total: total / ranks)
    wide = bucket.astype(jnp.float32)
    if wire.dtype != "float16":  # bfloat16 has the range of float32
        return reduced(wide, lambda total: total / ranks).astype(bucket.dtype)
    scale, inverse = float16_scale(wide, wire.axis, cost.roundings(algorithm, ranks, grid))
    # The sum fits by its scale; its mean, of thousands of ranks, would lose bits in float16.
    return (reduced(wide * scale, lambda total: total) / ranks * inverse).astype(bucket.dtype)


def _exchange(
    x: Float[Array, " n"], wire: Wire, algorithm: str, grid: Grid, inner: Inner
) -> Packed:
    """Exchanges sums by an algorithm: reduce-scatter, `inner` on each segment, all-gather."""
    everyone = rows((math.prod(grid), 1))
    if algorithm == "psum":
        return direct(x, wire, everyone, inner)
    if algorithm == "ring":
        return ring(x, wire, everyone, inner)
    if algorithm == "torus_2d":
        return ring(x, wire, rows(grid), lambda s: ring(s, wire, columns(grid), inner))
    if algorithm == "hierarchical":
        # The backend knows the links of a host; between hosts few rounds count (Goyal et al., 4.2).
        return direct(x, wire, rows(grid), lambda s: binary_blocks(s, wire, columns(grid), inner))
    # halving_doubling too: 2^j ranks are one block.
    return binary_blocks(x, wire, everyone, inner)


def segments(algorithm: str, grid: Grid) -> int:
    """Counts the segments of one length that an array is cut into."""
    if algorithm == "hierarchical":
        return grid[0] * block_sizes(grid[1])[0]
    ranks = math.prod(grid)
    # The segments of the largest block are whole parts of those of all others.
    return block_sizes(ranks)[0] if algorithm == "binary_blocks" else ranks


def resolve_grid(algorithm: str, ranks: int, grid: tuple[int, ...] | None = None) -> Grid:
    """Resolves the grid (X, Y): ranks in a row, and rows; or devices of a host, and hosts.

    The latter are those of "hierarchical".

    Args:
      grid: None or (0, 0) for as square as possible, or for the hosts that the processes are (the
        devices are `jax.devices()`, in their order). Algorithms without a grid take no heed.

    Raises:
      ConfigError: an algorithm that does not exist, or not for `ranks`; a grid of other size.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"unknown allreduce.algorithm {short_repr(algorithm)}; known: {', '.join(ALGORITHMS)}"
        )
    if algorithm == "halving_doubling" and len(block_sizes(ranks)) > 1:
        raise ConfigError(
            f"allreduce.algorithm=halving_doubling wants a power of two of devices, not {ranks}; "
            "take binary_blocks, which is the same for any number"
        )
    if algorithm not in ("torus_2d", "hierarchical"):
        return ranks, 1
    if grid is None or tuple(grid) == (0, 0):
        if algorithm == "torus_2d":
            return square_grid(ranks)
        return host_grid(jax.devices()[:ranks])
    if len(grid) != 2 or min(grid) < 1 or math.prod(grid) != ranks:
        x, y = square_grid(ranks)
        raise ConfigError(
            f"allreduce.grid={short_repr(tuple(grid))} is not two numbers whose product is the "
            f"number of devices, {ranks}; take e.g. ({x}, {y}), or (0, 0)"
        )
    return grid[0], grid[1]


def gradient_mean(
    params: Any,
    axis: Any,
    ranks: int,
    *,
    algorithm: str,
    dtype: str,
    bucket_mib: float,
    grid: tuple[int, ...],
) -> Callable[[Any], Any] | None:
    """Binds `allreduce` as the config's group `allreduce` has it; None for the plain `lax.pmean`.

    Args:
      params: shapes and types of the gradients, as arrays or `jax.ShapeDtypeStruct`s.
      axis: the mesh axes of the devices.
      ranks: how many these are.

    Raises:
      ConfigError: it cannot be done on so many devices, or makes too many buckets.
    """
    # Before anything is traced, so that what cannot be is an error at once.
    grid = resolve_grid(algorithm, ranks, grid)
    if algorithm == "psum" and dtype == "own":
        # None, for `device_gradient` can then send the statistics in the same message.
        return None
    mib = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)) / 2**20
    if mib > bucket_mib * MOST_BUCKETS:
        raise ConfigError(
            f"allreduce.bucket_mib={bucket_mib:g} cuts gradients of {mib:.4g} MiB into more than "
            f"{MOST_BUCKETS:,} buckets; set it to {1.1 * mib / MOST_BUCKETS:.2g} or more"
        )
    return functools.partial(
        allreduce,
        axis=axis,
        algorithm=algorithm,
        dtype=None if dtype == "own" else dtype,
        bucket_bytes=int(bucket_mib * 2**20),
        grid=grid,
    )
