"""Holds statistics of curvature between their refreshes, each device those that it owns.

In a checkpoint they are by layer, whole, and of no number of devices (`stored`, `from_stored`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int

from lbsgd.models.curvature import CurvedLayer
from lbsgd.optim import stale
from lbsgd.optim.stale import Intervals
from lbsgd.workers.collectives import owned
from lbsgd.workers.collectives.ownership import Ownership, share_out
from lbsgd.workers.collectives.symmetric import packed_shape
from lbsgd.workers.placement import DEVICE_AXES


class Kept(NamedTuple):
    """Holds one statistic of all layers of a stack, or of a norm.

    Attributes:
      last, before: the values of the last two refreshes; of a factor packed, `[D, q, w, k]`,
        the rows that a device owns.
      inverse: of the last, damped; of a factor `[D, q, rows, d]`, likewise.
      intervals: of each layer.
    """

    last: Any
    before: Any
    inverse: Any
    intervals: Intervals


# By stack and factor, or by norm and "F".
Curvature = Mapping[str, Mapping[str, Kept]]


class Stack(NamedTuple):
    """Describes layers of one shape.

    Attributes:
      layers: their descriptions, in order.
      owner: how they are shared out.
    """

    layers: tuple[CurvedLayer, ...]
    owner: Ownership

    @property
    def factors(self) -> dict[str, int]:
        """Dimensions of the factors, by key."""
        return self.layers[0].factors

    @property
    def long(self) -> str:
        """Key of the factor whose inverse is shared out among the members of a group."""
        return max(self.factors, key=lambda key: self.factors[key])

    def rows(self, key: str) -> int:
        """Counts the rows of a factor's inverse that a device owns."""
        return self.owner.width if key == self.long else self.owner.short


def stacks_of(layers: Mapping[str, CurvedLayer], devices: int) -> dict[str, Stack]:
    """Collects the layers that have factors by the shapes of these: "27x16" and so on."""
    by_shape: dict[str, list[CurvedLayer]] = {}
    for layer in layers.values():
        if layer.factors:
            name = "x".join(str(d) for d in layer.factors.values())
            by_shape.setdefault(name, []).append(layer)
    return {name: _stack(tuple(each), devices) for name, each in by_shape.items()}


def _stack(layers: tuple[CurvedLayer, ...], devices: int) -> Stack:
    return Stack(layers, share_out(len(layers), tuple(layers[0].factors.values()), devices))


def nothing_kept(
    stacks: Mapping[str, Stack], norms: Mapping[str, CurvedLayer], dtype: Any
) -> Curvature:
    """Makes the state of a run's start, where all are due."""
    found: dict[str, dict[str, Kept]] = {}
    for name, stack in stacks.items():
        found[name] = {key: _of_factor(stack, key, dtype) for key in stack.factors}
    for name, layer in norms.items():
        last, before, inverse = (jnp.zeros((layer.outputs, 3), dtype) for _ in range(3))
        found[name] = {"F": Kept(last, before, inverse, stale.first_intervals(1))}
    return found


def _of_factor(stack: Stack, key: str, dtype: Any) -> Kept:
    o, d = stack.owner, stack.factors[key]
    rows, columns = packed_shape(d)
    of_factor = (o.devices, o.per_group, o.rows_of(rows), columns)
    last, before = (jnp.zeros(of_factor, dtype) for _ in range(2))
    inverse = jnp.zeros((o.devices, o.per_group, stack.rows(key), d), dtype)
    return Kept(last, before, inverse, stale.first_intervals(o.layers))


def specs(curvature: Curvature, stacks: Mapping[str, Stack]) -> Any:
    """Says how the state is partitioned over devices: a tree of `PartitionSpec`s like it."""
    owned_by, by_all = PartitionSpec(DEVICE_AXES), PartitionSpec()

    def of_one(name: str, kept: Kept) -> Kept:
        values = owned_by if name in stacks else by_all
        return Kept(values, values, values, jax.tree.map(lambda _: by_all, kept.intervals))

    return _map(of_one, curvature)


def due(
    curvature: Curvature, stacks: Mapping[str, Stack], update_index: Int[Array, ""]
) -> dict[str, dict[str, Bool[Array, ""]]]:
    """Tells which statistics are to be refreshed in an update, by layer."""
    flags = _map(lambda _, kept: stale.is_due(kept.intervals, update_index), curvature)
    found = {name: {"F": of["F"][0]} for name, of in flags.items() if name not in stacks}
    for name, stack in stacks.items():
        for i, layer in enumerate(stack.layers):
            found[layer.name] = {key: flags[name][key][i] for key in stack.factors}
    return found


def stored(curvature: Curvature, stacks: Mapping[str, Stack]) -> Any:
    """Gives the state the form of checkpoints: arrays `[n, ...]` of the layers of a stack.

    Args:
      curvature: of numpy arrays, or to be traced.
    """
    return _each_way(curvature, stacks, owned.from_pieces, owned.from_members)


def from_stored(curvature: Curvature, stacks: Mapping[str, Stack]) -> Any:
    """Gives the state that `stored` gives its form for the devices of these stacks.

    Args:
      curvature: of numpy arrays.
    """
    return _each_way(
        curvature, stacks, lambda x, _, owner: owned.in_pieces(x, owner), owned.for_members
    )


def _each_way(
    curvature: Curvature,
    stacks: Mapping[str, Stack],
    pieces: Callable[..., Any],
    members: Callable[..., Any],
) -> Any:
    def of_one(name: str, key: str, kept: Kept) -> Kept:
        if name not in stacks:
            return kept
        stack = stacks[name]
        rows, _ = packed_shape(stack.factors[key])
        last, before = (pieces(x, rows, stack.owner) for x in (kept.last, kept.before))
        if key == stack.long:
            inverse = pieces(kept.inverse, stack.owner.long, stack.owner)
        else:
            inverse = members(kept.inverse, stack.owner)
        return Kept(last, before, inverse, kept.intervals)

    return {
        name: {key: of_one(name, key, kept) for key, kept in of.items()}
        for name, of in curvature.items()
    }


def _map(f: Callable[[str, Kept], Any], curvature: Curvature) -> dict[str, dict[str, Any]]:
    return {
        name: {key: f(name, kept) for key, kept in of.items()} for name, of in curvature.items()
    }
