"""Computes what each update takes as an argument: its learning rate, momentum and the like."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lbsgd.run.plan import Plan
from lbsgd.step.numbers import Numbers
from lbsgd.system.devices import precision

# Updates whose numbers are computed at a time.
BLOCK = 4096


class UpdateNumbers:
    """Holds the numbers of a run by update index: those that do not change are on the devices."""

    def __init__(self, plan: Plan) -> None:
        """Computes nothing yet."""
        self._plan = plan
        leaves, self._structure = jax.tree.flatten(plan.numbers)
        self._shapes: list[Any] = jax.tree.leaves(plan.number_shapes())
        self._scheduled = {i: leaf for i, leaf in enumerate(leaves) if callable(leaf)}
        self._constant = {
            i: self._on_devices(leaf, self._shapes[i])
            for i, leaf in enumerate(leaves)
            if i not in self._scheduled
        }
        self._functions = [*self._scheduled.values(), *plan.schedules.values()]
        self._block, self._values = -1, list[np.ndarray]()

    def at(self, update: int) -> Numbers:
        """Gives what the update of this index takes; past the last, what that took."""
        return self._made_of(self._row(update), update)

    def of_call(self, first: int, count: int) -> Numbers:
        """Gives what so many updates take from an index on: `[U]` of what varies, else scalars."""
        rows = [self._row(update)[: len(self._scheduled)] for update in range(first, first + count)]
        shapes = [self._shapes[i] for i in self._scheduled]
        columns = [np.asarray(column, s.dtype) for column, s in zip(zip(*rows), shapes)]
        return self._made_of(columns, first)

    def shapes_of_call(self, count: int) -> Numbers:
        """Gives shapes and types of what `of_call` gives."""
        leaves = [
            jax.ShapeDtypeStruct((count,), s.dtype) if i in self._scheduled else s
            for i, s in enumerate(self._shapes)
        ]
        shapes: Numbers = jax.tree.unflatten(self._structure, leaves)
        return shapes

    def _made_of(self, row: list[Any], update: int) -> Numbers:
        leaves: list[Any] = [None] * len(self._shapes)
        for i, value in self._constant.items():
            leaves[i] = value
        for i, value in zip(self._scheduled, row):
            leaves[i] = value
        numbers: Numbers = jax.tree.unflatten(self._structure, leaves)
        return numbers._replace(update_index=np.int32(update))

    def reported(self, update: int) -> Mapping[str, float]:
        """Gives what of it is among the metrics of the update of this index, by name."""
        row = self._row(update)[len(self._scheduled) :]
        return dict(zip(self._plan.schedules, map(float, row)))

    def _row(self, update: int) -> list[Any]:
        update = min(update, self._plan.total_updates - 1)
        if update // BLOCK != self._block:
            self._block = update // BLOCK
            indices = np.arange(self._block * BLOCK, (self._block + 1) * BLOCK, dtype=np.int32)
            with precision(self._plan.config.dtype):
                # In numpy, as the indices are: nothing is compiled, and no device waits.
                self._values = [np.asarray(f(indices)) for f in self._functions]
        return [values[update % BLOCK] for values in self._values]

    def _on_devices(self, value: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        array, sharding = np.asarray(value, shape.dtype), self._plan.placement.replicated
        # Not `device_put`, which in several processes would have them compare notes.
        return jax.make_array_from_callback((), sharding, lambda _: array)
