"""The step of many runs at once: their updates mapped over an axis of runs, in one program."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lbsgd.run.fitting import MINIBATCHES, batch_bytes
from lbsgd.run.layout import sharded, shardings
from lbsgd.run.plan import Plan
from lbsgd.run.program import Program, Shape
from lbsgd.run.sharing import SHARED, SharedFunction
from lbsgd.step.numbers import Numbers
from lbsgd.step.train_step import TrainState
from lbsgd.step.worker import Batch
from lbsgd.system.devices import device_memory, precision
from lbsgd.system.errors import ConfigError
from lbsgd.workers.fit import memory_of, shown_bytes
from lbsgd.workers.placement import Placement

# Runs differ in their seed; all else of an update they share.
RUN_AXES = Numbers._make([0, *[None] * (len(Numbers._fields) - 1)])


@dataclasses.dataclass(frozen=True)
class JointProgram:
    """The compiled functions of several runs that differ in their seeds alone.

    Attributes:
      program: of one of them.
      count: S, how many runs there are.
    """

    program: Program
    count: int

    @property
    def plan(self) -> Plan:
        """The plan of one of them."""
        return self.program.plan

    def compile_train_step(
        self, placement: Placement | None = None, image_shape: Shape | None = None
    ) -> jax.stages.Compiled:
        """Compiles the update of all runs: (states, batches, numbers) -> (states, metrics).

        `states` is a state whose arrays are `[S, ...]`, donated; `batches` and the metrics are a
        list of S; of the numbers the seed is `[S]`.
        """
        placement = placement or self.plan.placement
        replicated, of_states = placement.replicated, _sharding_of_states(placement)
        out = (of_states, replicated)
        step, count = self.plan.train_step(placement, alone=False), self.count

        def joint_step(states: TrainState, batches: list[Batch], numbers: Numbers) -> Any:
            batch = _stacked(*batches)
            states, metrics = jax.vmap(step, (0, 0, RUN_AXES))(states, batch, numbers)
            # One by one already here: to take them apart later would be as many programs.
            return states, [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(count)]

        jitted = jax.jit(joint_step, donate_argnums=0, out_shardings=out, keep_unused=True)
        with precision(self.plan.config.dtype):
            numbers = self.plan.number_shapes()
            numbers = numbers._replace(seed=_many(numbers.seed, count))
            shapes = self.plan.shapes_on_devices(placement)
            lowered = jitted.lower(
                sharded(jax.tree.map(lambda s: _many(s, count), shapes), of_states),
                [self.program.abstract_batch(placement, image_shape)] * count,
                sharded(numbers, replicated),
            )
            return SHARED.compile(lowered, out, self.program.step_options)

    def compile_call(
        self, placement: Placement, image_shape: Shape, count: int
    ) -> jax.stages.Compiled:
        """Compiles the one update of a call; together, runs have no calls of several."""
        assert count == 1
        return self.compile_train_step(placement, image_shape)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """Stacks states on the devices; it takes them, as a step would."""
        with precision(self.plan.config.dtype):
            out = _sharding_of_states(self.plan.placement)
            stacked: TrainState = SharedFunction(_stacked, out)(*states)
        jax.block_until_ready(stacked)
        for leaf in jax.tree.leaves(list(states)):
            if not leaf.is_deleted():
                leaf.delete()
        return stacked

    def take(self, states: TrainState, run: int) -> TrainState:
        """Copies the state of one run out of the stacked ones."""
        with precision(self.plan.config.dtype):
            taken: TrainState = self._take(states, np.int32(run))
            return taken

    @functools.cached_property
    def _take(self) -> SharedFunction:
        return SharedFunction(_taken, self.program.state_shardings())

    def check_memory(self, step: jax.stages.Compiled, placement: Placement) -> None:
        """Checks that the runs fit into the memory of a device, where that is known.

        Raises:
          ConfigError: they do not.
        """
        needed, limit = self.needed_memory(step, placement), known_memory(self.plan)
        if limit is not None and needed > limit:
            # About, for what belongs to all of them is counted as if it grew with them.
            fit = limit * self.count // needed
            raise ConfigError(
                f"{self.count} runs at once need {shown_bytes(needed)}, a device has "
                f"{shown_bytes(limit)}; set seeds_at_once to {max(fit, 1)} at most"
            )

    def needed_memory(self, step: jax.stages.Compiled, placement: Placement) -> int:
        """Counts the bytes that a device needs for the update and the batches that wait for it."""
        batches = self.count * batch_bytes(self.plan, placement)
        return memory_of(step, batches) + MINIBATCHES * batches


def known_memory(plan: Plan) -> int | None:
    """Returns the bytes of a device that a step may use; None where it does not tell."""
    with contextlib.suppress(ConfigError):
        return device_memory(plan.config)
    return None


def _sharding_of_states(placement: Placement) -> TrainState:
    """Says where the devices hold a state whose arrays are `[S, ...]`: a prefix of its tree."""
    of_states: TrainState = shardings(placement.replicated, placement.stacked_sharding)
    return of_states


def _stacked(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _taken(states: Any, run: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[run], states)


def _many(shape: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *shape.shape), shape.dtype)
