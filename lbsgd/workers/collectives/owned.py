"""Moves what belongs to layers to the devices that own them, and back, within `jax.shard_map`.

A stack of n layers is an array `[n, size]` on every device. Its owners have pieces of it,
`[q, piece]`: of the q layers of its group a member has the same part of each.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from lbsgd.workers.collectives.exchange import Wire
from lbsgd.workers.collectives.ownership import TILE, Ownership, scattered_size


def reduce_scatter(
    stacks: Sequence[jax.Array], owners: Sequence[Ownership], wire: Wire
) -> list[jax.Array]:
    """Sums stacks `[n, size]` over devices in one exchange, pieces `[q, piece]` to their owners."""
    pieces = [jnp.asarray(in_pieces(x, owner)) for x, owner in zip(stacks, owners)]
    devices = owners[0].devices
    if devices == 1:
        return [x[0] for x in pieces]
    flat = jnp.concatenate([x.reshape(devices, -1) for x in pieces], axis=1)
    total = _scattered_sum(flat, wire)
    ends = np.cumsum([x[0].size for x in pieces])
    parts = jnp.split(total[: ends[-1]], ends[:-1])
    return [part.reshape(x.shape[1:]) for part, x in zip(parts, pieces)]


def _scattered_sum(x: Float[Array, "devices size"], wire: Wire) -> Float[Array, " padded"]:
    """Gives each device its own row's sum."""
    if wire.dtype is None:
        # Of all other shapes XLA for a TPU makes an all-reduce, which sends twice as much.
        missing = scattered_size(x.shape[1]) - x.shape[1]
        tiles = jnp.pad(x, ((0, 0), (0, missing))).reshape(-1, TILE[1])
        return lax.psum_scatter(tiles, wire.axis, tiled=True).reshape(-1)
    # By all-to-all, for the backend's reduce-scatter would add in 16 bits.
    arrived = lax.all_to_all(wire.pack(x), wire.axis, 0, 0)
    # One by one: XLA on a CPU takes 80 times as long for jnp.sum over the first axis.
    return functools.reduce(jnp.add, list(wire.unpack(arrived)))


def gather_in_group(
    x: Float[Array, "q piece"], size: int, owner: Ownership, wire: Wire
) -> Float[Array, "q size"]:
    """Puts the members' pieces together, so that each has the whole of its group's layers."""
    if owner.members == 1:
        return wire.unpack(wire.pack(x))[:, :size]
    parts = lax.all_gather(wire.pack(x), wire.axis, axis_index_groups=owner.device_groups)
    whole = jnp.swapaxes(wire.unpack(parts), 0, 1)
    return whole.reshape(owner.per_group, -1)[:, :size]


def rows_of_member(
    x: Float[Array, "q long d"], owner: Ownership, member: Int[Array, ""]
) -> Float[Array, "q w d"]:
    """Takes the rows that a member owns; past the last they are zeros."""
    missing = owner.members * owner.width - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))
    return lax.dynamic_slice_in_dim(x, member * owner.width, owner.width, axis=1)


def psum_in_group(x: Float[Array, "*shape"], owner: Ownership, axes: Any) -> Float[Array, "*shape"]:
    """Sums over the devices of a group."""
    total: jax.Array = lax.psum(x, axes, axis_index_groups=owner.device_groups)
    return total


def all_gather(
    x: Float[Array, "q w columns"], owner: Ownership, wire: Wire
) -> Float[Array, "n long columns"]:
    """Gives all devices the rows of each layer that its owners have, w each."""
    every = x[None] if owner.devices == 1 else lax.all_gather(x, wire.axis)
    return jnp.asarray(from_pieces(every, owner.long, owner))


def in_pieces(
    x: Shaped[Array | np.ndarray, "n size *rest"], owner: Ownership
) -> Shaped[Array | np.ndarray, "devices q piece *rest"]:
    """Cuts a stack into what each device owns of it; of numpy arrays makes numpy arrays."""
    count, size, *rest = x.shape
    short = (owner.groups * owner.per_group - count, owner.members * owner.piece(size) - size)
    library = jnp if isinstance(x, jax.Array) else np
    x = library.pad(x, (*((0, n) for n in short), *((0, 0) for _ in rest)))
    x = x.reshape(owner.groups, owner.per_group, owner.members, -1, *rest).swapaxes(1, 2)
    return x.reshape(owner.devices, owner.per_group, -1, *rest)


def from_pieces(
    x: Shaped[Array | np.ndarray, "devices q piece *rest"], size: int, owner: Ownership
) -> Shaped[Array | np.ndarray, "n size *rest"]:
    """Puts together what `in_pieces` cuts."""
    _, per_group, piece, *rest = x.shape
    x = x.reshape(owner.groups, owner.members, per_group, piece, *rest).swapaxes(1, 2)
    x = x.reshape(owner.groups * per_group, owner.members * piece, *rest)
    return x[: owner.layers, :size]


def for_members(
    x: Shaped[Array | np.ndarray, " n *rest"], owner: Ownership
) -> Shaped[Array | np.ndarray, " devices q *rest"]:
    """Gives each device the whole of its group's layers; of numpy arrays makes numpy arrays."""
    missing = owner.groups * owner.per_group - x.shape[0]
    library = jnp if isinstance(x, jax.Array) else np
    x = library.pad(x, ((0, missing), *((0, 0) for _ in x.shape[1:])))
    x = x.reshape(owner.groups, owner.per_group, *x.shape[1:])
    return library.repeat(x, owner.members, axis=0)


def from_members(
    x: Shaped[Array | np.ndarray, " devices q *rest"], owner: Ownership
) -> Shaped[Array | np.ndarray, " n *rest"]:
    """Takes from the first member of each group what all of its members have."""
    x = x[:: owner.members]
    return x.reshape(-1, *x.shape[2:])[: owner.layers]
