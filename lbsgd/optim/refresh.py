"""Refreshes statistics of curvature where they are owned, and inverts them: those that are due."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Shaped

from lbsgd.models.curvature import UNIT_WISE, CurvedLayer
from lbsgd.optim import natural, stale
from lbsgd.optim.inversion import Rows, inverse, inverse_rows
from lbsgd.optim.kept import Curvature, Kept, Stack
from lbsgd.optim.natural import Damping
from lbsgd.optim.stale import Distances
from lbsgd.workers.collectives import owned
from lbsgd.workers.collectives.exchange import Wire
from lbsgd.workers.collectives.ownership import Ownership
from lbsgd.workers.collectives.symmetric import on_diagonal, pack, packed_shape, unpack
from lbsgd.workers.collectives.turns import Turns


class Sharing(NamedTuple):
    """Says how layers are shared out, and what is exchanged for it.

    Attributes:
      layers: those with a rule, by name.
      stacks: those of them that have factors, by shape.
      threshold: alpha of Algorithm 2; with 0 all is refreshed in each update, and nothing is kept.
      axes: of the mesh, over which devices are numbered.
      dtype: of 16 bits, that statistics are sent in; None for their own.
    """

    layers: Mapping[str, CurvedLayer]
    stacks: Mapping[str, Stack]
    threshold: float
    axes: Any
    dtype: str | None = None

    @property
    def norms(self) -> dict[str, CurvedLayer]:
        """Those layers that have 2x2 matrices for their channels, by name."""
        return {name: x for name, x in self.layers.items() if x.kind == UNIT_WISE}


class Measured(NamedTuple):
    """Holds what devices tell each other: on the way of pieces `[q]`, and then of layers `[n]`.

    Attributes:
      traces: of factors, by stack and key.
      distances: between refreshes, likewise; {} where nothing is kept.
      square: of the norm of the stacks' gradient.
    """

    traces: Any
    distances: Any
    square: Any


@dataclasses.dataclass(frozen=True)
class Refresh:
    """Takes the statistics of one update.

    Attributes:
      due: flags by layer and key; None where all are.
      turns: of what is exchanged; None where nothing is conditional.
      sums, scales, curvature, index: as `Preconditioner.__call__` takes them.
    """

    by: Sharing
    sums: Mapping[str, Mapping[str, Any]]
    scales: Mapping[str, Mapping[str, float]]
    curvature: Curvature | None
    due: Any
    index: Int[Array, ""]
    damping: Damping
    turns: Turns | None

    def factors(self, gradients: Mapping[str, jax.Array]) -> tuple[Any, Measured]:
        """Reduces factors to where they are owned, and measures them.

        Args:
          gradients: pieces of the stacks' gradients.

        Returns:
          the newest of each in pieces `[q, w, k]`, and what all devices know of them.
        """
        last, measured = {}, Measured({}, {}, jnp.zeros(()))
        for name, stack in self.by.stacks.items():
            for key in stack.factors:
                fresh = self._fresh(stack, key)
                x, trace, distances = self._taken(name, key, fresh)
                last[name, key] = x
                measured.traces[name, key] = trace
                if self.curvature:
                    measured.distances[name, key] = distances
        squares = [jnp.sum(jnp.square(x)) for x in gradients.values()]
        if squares:
            measured = measured._replace(square=functools.reduce(jnp.add, squares))
        return last, self._told(measured)

    def inverses(self, last: Any, told: Measured) -> dict[str, dict[str, jax.Array]]:
        """Inverts what this device owns and is due, `[q, rows, d]` by stack and key.

        Factors of one size are a loop, so that it is compiled once: for a TPU that takes seconds.
        """
        together: dict[Any, list[tuple[str, str]]] = {}
        for name, stack in self.by.stacks.items():
            for key, d in stack.factors.items():
                alone = not (key == stack.long and stack.owner.inverts_together)
                together.setdefault(d if alone else (name, key), []).append((name, key))
        found: dict[str, dict[str, jax.Array]] = {name: {} for name in self.by.stacks}
        for factors in together.values():
            for (name, key), rows in zip(factors, self._inverted(factors, last, told)):
                found[name][key] = rows
        return found

    def kept_factors(self, last: Any, told: Measured, inverses: Any) -> Any:
        """Makes of it what is kept."""
        return {
            name: {
                key: self._kept(name, key, last[name, key], told, inverses[name][key])
                for key in stack.factors
            }
            for name, stack in self.by.stacks.items()
        }

    def of_norms(self) -> tuple[Any, dict[str, Float[Array, "c 3"]]]:
        """Inverts the matrices of norms' channels; gives what is kept, and these."""
        norms = self.by.norms
        flags = self.due and [self.due[name]["F"] for name in norms]
        sums = {name: self.sums[name]["F"] for name in norms}
        sums = self._if_any(flags, lambda: lax.psum(sums, self.by.axes), sums)
        fresh = {
            name: total * jnp.asarray(self.scales[name]["F"], total.dtype)
            for name, total in sums.items()
        }
        inverses = {name: natural.unit_wise_inverse(f, self.damping) for name, f in fresh.items()}
        if not self.curvature:
            return {}, inverses
        after = {name: self._kept_of_norm(name, f, inverses[name]) for name, f in fresh.items()}
        return {name: {"F": x} for name, x in after.items()}, {
            name: x.inverse for name, x in after.items()
        }

    def _kept_of_norm(
        self, name: str, fresh: Float[Array, "c 3"], inverse: Float[Array, "c 3"]
    ) -> Kept:
        assert self.curvature
        old, due = self.curvature[name]["F"], self.due[name]["F"]
        distances = _distances(fresh[None], old.last[None], old.before[None], _OF_CHANNEL)
        last, before, kept = (
            jnp.where(due, new, x)
            for new, x in ((fresh, old.last), (old.last, old.before), (inverse, old.inverse))
        )
        intervals = stale.advanced(old.intervals, distances, self.index, self.by.threshold)
        return Kept(last, before, kept, intervals)

    def _scale(self, like: jax.Array, names: Sequence[str], key: str) -> Float[Array, " n"]:
        return jnp.asarray([self.scales[name][key] for name in names], like.dtype)

    def _mine(self, values: Shaped[Array, " n"], owner: Ownership) -> Shaped[Array, " q"]:
        """Takes those of the layers that this device's group owns."""
        values = jnp.pad(values, (0, owner.groups * owner.per_group - owner.layers))
        group = lax.axis_index(self.by.axes) // owner.members
        return lax.dynamic_index_in_dim(
            values.reshape(owner.groups, owner.per_group), group, keepdims=False
        )

    def _flags(self, stack: Stack, key: str) -> list[Bool[Array, ""]] | None:
        return self.due and [self.due[layer.name][key] for layer in stack.layers]

    def _member(self, owner: Ownership) -> Int[Array, ""]:
        return lax.axis_index(self.by.axes) % owner.members

    def _fresh(self, stack: Stack, key: str) -> Float[Array, "q w k"]:
        """Sums a factor over devices, where it is due."""
        o = stack.owner
        matrices = [self.sums[layer.name][key] for layer in stack.layers]
        rows, columns = packed_shape(stack.factors[key])
        like = jax.ShapeDtypeStruct((o.per_group, o.rows_of(rows), columns), matrices[0].dtype)

        def reduced() -> Float[Array, "q w k"]:
            wire = Wire(self.by.axes, self.by.dtype)
            total = owned.reduce_scatter([pack(x) for x in matrices], o, wire)
            return total.astype(like.dtype)

        scale = self._scale(matrices[0], [layer.name for layer in stack.layers], key)
        total = self._if_any(self._flags(stack, key), reduced, like)
        return total * self._mine(scale, o)[:, None, None]

    def _if_any(
        self, flags: Sequence[Bool[Array, ""]] | None, compute: Callable[[], Any], like: Any
    ) -> Any:
        """Computes something where any flag is set, else zeros; without flags always."""
        if flags is None:
            return compute()
        zeros = _zeros(like)
        return self._in_turn(flags, compute, lambda: zeros) if flags else zeros

    def _in_turn(
        self,
        flags: Sequence[Bool[Array, ""]] | None,
        compute: Callable[[], Any],
        otherwise: Callable[[], Any],
    ) -> Any:
        assert self.turns
        due = self.turns.condition(jnp.any(jnp.stack(flags or [])))
        found = lax.cond(due, compute, otherwise)
        self.turns.after(found)
        return found

    def _taken(self, name: str, key: str, fresh: Float[Array, "q w k"]) -> tuple[Any, Any, Any]:
        """Gives the newest of a factor, and of its pieces the trace and the distances."""
        stack = self.by.stacks[name]
        o, d = stack.owner, stack.factors[key]
        rows = fresh.shape[1]
        index = self._member(o) * rows + jnp.arange(rows, dtype=jnp.int32)
        diagonal = on_diagonal(index, d)[None]
        last, distances = fresh, None
        if self.curvature:
            old = self.curvature[name][key]
            weights = jnp.where(diagonal, 1, 2).astype(fresh.dtype)
            distances = _distances(fresh, old.last[0], old.before[0], weights)
            last = jnp.where(self._mine_due(stack, key)[:, None, None], fresh, old.last[0])
        return last, jnp.sum(jnp.where(diagonal, last, 0), axis=(1, 2)), distances

    def _mine_due(self, stack: Stack, key: str) -> Bool[Array, " q"]:
        return self._mine(jnp.stack(self._flags(stack, key) or []), stack.owner)

    def _told(self, measured: Measured) -> Measured:
        """Lets all devices know what each has measured, and adds up what belongs to one layer."""
        vector, unravel = ravel_pytree(measured)
        alone = lax.axis_size(self.by.axes) == 1
        if self.turns:
            vector = self.turns.value(vector)
        each = jax.vmap(unravel)(vector[None] if alone else lax.all_gather(vector, self.by.axes))
        if self.turns:
            self.turns.after(each)

        def of_layers(by_stack: Any) -> Any:
            return {
                (name, key): jax.tree.map(lambda x, n=name: self._added(x, n), tree)
                for (name, key), tree in by_stack.items()
            }

        return Measured(
            of_layers(each.traces), of_layers(each.distances), jnp.sum(each.square, axis=0)
        )

    def _added(self, x: Float[Array, "devices q"], name: str) -> Float[Array, " n"]:
        o = self.by.stacks[name].owner
        of_groups = x.reshape(o.groups, o.members, o.per_group)
        return jnp.sum(of_groups, axis=1).reshape(-1)[: o.layers]

    def _inverted(
        self, factors: list[tuple[str, str]], last: Any, told: Measured
    ) -> list[jax.Array]:
        """Inverts factors of one size, of several stacks, `[q, rows, d]` each."""
        numbers = jnp.concatenate([self._dampings(name, key, told) for name, key in factors])
        if not self.curvature:
            wholes = self._wholes(factors, last, self.turns)
            found = lax.map(self._inverse(*factors[0]), (wholes, numbers))
            if self.turns:
                self.turns.after(found)
            return self._own_rows(factors, found)
        stacks = [self.by.stacks[name] for name, _ in factors]
        old = [self.curvature[name][key].inverse[0] for name, key in factors]
        own = [self._mine_due(stack, key) for stack, (_, key) in zip(stacks, factors)]
        slots = [self._slots_due(stack, key) for stack, (_, key) in zip(stacks, factors)]

        def where_due(args: tuple[jax.Array, ...]) -> Float[Array, "rows d"]:
            *given, due = args
            inverse = functools.partial(self._inverse(*factors[0]), given)
            return lax.cond(due, inverse, lambda: _zeros(jax.eval_shape(inverse)))

        def refreshed() -> list[jax.Array]:
            turns = Turns((), lax.axis_size(self.by.axes))
            args = (self._wholes(factors, last, turns), numbers, jnp.concatenate(slots))
            found = self._own_rows(factors, lax.map(where_due, args))
            return [jnp.where(due[:, None, None], new, x) for due, new, x in zip(own, found, old)]

        inverses: list[jax.Array] = self._in_turn(
            [jnp.any(due) for due in slots], refreshed, lambda: old
        )
        return inverses

    def _dampings(self, name: str, key: str, told: Measured) -> Float[Array, " q"]:
        stack = self.by.stacks[name]
        traces = {other: told.traces[name, other] for other in stack.factors}
        numbers = natural.factor_damping(stack.layers[0], key, traces, self.damping)
        return self._mine(numbers, stack.owner)

    def _wholes(
        self, factors: list[tuple[str, str]], last: Any, turns: Turns | None
    ) -> Float[Array, "sum_q d d"]:
        """Puts the pieces of a group's factors together."""
        wire, found = Wire(self.by.axes, self.by.dtype), []
        for name, key in factors:
            stack = self.by.stacks[name]
            pieces = turns.value(last[name, key]) if turns else last[name, key]
            d = stack.factors[key]
            whole = owned.gather_in_group(pieces, packed_shape(d)[0], stack.owner, wire)
            whole = whole.astype(pieces.dtype)
            if turns:
                turns.after(whole)
            found.append(unpack(whole, d))
        return jnp.concatenate(found)

    def _inverse(self, name: str, key: str) -> Callable[[Any], Float[Array, "rows d"]]:
        """Says how a factor is inverted: to (matrix, damping) gives all rows, or a member's."""
        stack = self.by.stacks[name]
        o = stack.owner
        rows = None
        if key == stack.long and o.inverts_together:
            total = functools.partial(owned.psum_in_group, owner=o, axes=self.by.axes)
            rows = Rows(self._member(o) * o.width, o.width, total)

        def inverted(given: Any) -> Float[Array, "rows d"]:
            matrix = natural.plus_diagonal(*given)
            return inverse_rows(matrix, rows) if rows else inverse(matrix)

        return inverted

    def _own_rows(
        self, factors: list[tuple[str, str]], inverses: Float[Array, "sum_q rows d"]
    ) -> list[jax.Array]:
        """Takes of inverses what a member owns, `[q, rows, d]` of each stack."""
        found, first = [], 0
        for name, key in factors:
            stack = self.by.stacks[name]
            o = stack.owner
            of_stack = inverses[first : first + o.per_group]
            first += o.per_group
            if key == stack.long and not o.inverts_together:
                of_stack = owned.rows_of_member(of_stack, o, self._member(o))
            found.append(of_stack)
        return found

    def _slots_due(self, stack: Stack, key: str) -> Bool[Array, " q"]:
        """Tells of the first layers of all groups, the second, ..., whether any of them is due."""
        # The same on all devices, for there may be collectives in what depends on it.
        o, flags = stack.owner, jnp.stack(self._flags(stack, key) or [])
        missing = o.groups * o.per_group - o.layers
        return jnp.any(jnp.pad(flags, (0, missing)).reshape(o.groups, o.per_group), axis=0)

    def _kept(
        self, name: str, key: str, last: jax.Array, told: Measured, inverse: jax.Array
    ) -> Kept:
        assert self.curvature
        old, due = self.curvature[name][key], self._mine_due(self.by.stacks[name], key)
        before = jnp.where(due[:, None, None], old.last[0], old.before[0])
        intervals = stale.advanced(
            old.intervals, told.distances[name, key], self.index, self.by.threshold
        )
        return Kept(last[None], before[None], inverse[None], intervals)


def _zeros(like: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


# Of [[a, b], [b, d]] as (a, b, d).
_OF_CHANNEL = (1.0, 2.0, 1.0)


def _distances(x: Any, last: Any, before: Any, weights: Any) -> Distances:
    """Measures how far statistics lie from those of before, `[q]`."""
    weights = jnp.asarray(weights, x.dtype)

    def square(y: Float[Array, " q *rest"]) -> Float[Array, " q"]:
        weighted = jnp.square(y) * weights.reshape((1,) * (y.ndim - weights.ndim) + weights.shape)
        return jnp.sum(weighted.reshape(y.shape[0], -1), axis=1)

    return Distances(square(x - last), square(x - before), square(last), square(before))
