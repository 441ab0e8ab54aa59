"""Moves what belongs to layers to the devices that own them, and back, within `jax.shard_map`.

What belongs to a layer is a matrix, of which a device owns some rows: of the q layers of its group
a member has the same part of each, `[q, w, columns]`.
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
from lbsgd.workers.collectives.ownership import Ownership


def reduce_scatter(
    layers: Sequence[Float[Array, "rows columns"]], owner: Ownership, wire: Wire
) -> Float[Array, "q w columns"]:
    """Sums the matrices of a stack over devices, to each the rows that it owns."""
    o, rows = owner, layers[0].shape[0]
    missing = o.members * o.rows_of(rows) - rows
    padded = [jnp.pad(x, ((0, missing), (0, 0))) for x in layers]
    nothing = jnp.zeros_like(padded[0])
    padded += [nothing] * (o.groups * o.per_group - o.layers)
    # The first layers of all groups, the second, ...: each is the rows of all devices, in order.
    slots = [jnp.concatenate(padded[i :: o.per_group]) for i in range(o.per_group)]
    return jnp.stack([_summed(x, o.devices, wire) for x in slots])


def _summed(
    x: Float[Array, "all_rows columns"], devices: int, wire: Wire
) -> Float[Array, "w columns"]:
    """Gives each device the sum of its rows."""
    if devices == 1:
        return x
    if wire.dtype is None:
        return lax.psum_scatter(x, wire.axis, tiled=True)
    # By all-to-all, for the backend's reduce-scatter would add in 16 bits.
    by_device = wire.pack(x).reshape(devices, -1, x.shape[1])
    arrived = lax.all_to_all(by_device, wire.axis, 0, 0)
    # One by one: XLA on a CPU takes 80 times as long for jnp.sum over the first axis.
    return functools.reduce(jnp.add, list(wire.unpack(arrived)))


def gather_in_group(
    x: Float[Array, "q w columns"], rows: int, owner: Ownership, wire: Wire
) -> Float[Array, "q rows columns"]:
    """Puts the members' rows together, so that each has the whole of its group's layers."""
    if owner.members == 1:
        return wire.unpack(wire.pack(x))[:, :rows]
    parts = lax.all_gather(wire.pack(x), wire.axis, axis_index_groups=owner.device_groups)
    whole = jnp.swapaxes(wire.unpack(parts), 0, 1)
    return whole.reshape(owner.per_group, -1, x.shape[2])[:, :rows]


def all_gather(
    x: Float[Array, "q w columns"], owner: Ownership, wire: Wire
) -> list[Float[Array, "long columns"]]:
    """Gives all devices the matrices of a stack, of whose rows each has those that it owns."""
    o, slots = owner, list(x)
    if o.devices > 1:
        slots = [lax.all_gather(rows, wire.axis, tiled=True) for rows in slots]
    of_groups = [rows.reshape(o.groups, -1, x.shape[2])[:, : o.long] for rows in slots]
    return [of_groups[i % o.per_group][i // o.per_group] for i in range(o.layers)]


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


def in_pieces(
    x: Shaped[Array | np.ndarray, "n rows columns"], owner: Ownership
) -> Shaped[Array | np.ndarray, "devices q w columns"]:
    """Cuts a stack into what each device owns of it; of numpy arrays makes numpy arrays."""
    count, rows, columns = x.shape
    o, w = owner, owner.rows_of(rows)
    library = jnp if isinstance(x, jax.Array) else np
    x = library.pad(x, ((0, o.groups * o.per_group - count), (0, o.members * w - rows), (0, 0)))
    x = x.reshape(o.groups, o.per_group, o.members, w, columns).swapaxes(1, 2)
    return x.reshape(o.devices, o.per_group, w, columns)


def from_pieces(
    x: Shaped[Array | np.ndarray, "devices q w columns"], rows: int, owner: Ownership
) -> Shaped[Array | np.ndarray, "n rows columns"]:
    """Puts together what `in_pieces` cuts; of numpy arrays makes numpy arrays."""
    _, per_group, w, columns = x.shape
    x = x.reshape(owner.groups, owner.members, per_group, w, columns).swapaxes(1, 2)
    x = x.reshape(owner.groups * per_group, owner.members * w, columns)
    return x[: owner.layers, :rows]


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
