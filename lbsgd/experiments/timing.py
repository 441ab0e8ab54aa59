"""Times the updates of one run, and of many at once, on random images."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lbsgd.data.repeated import random_batch
from lbsgd.experiments.joint import JointProgram
from lbsgd.run.program import Program
from lbsgd.system.devices import explain_out_of_memory, precision

# How long updates are timed for at a time, about.
SECONDS = 0.3


@dataclasses.dataclass
class Timed:
    """Updates to be timed.

    Attributes:
      runs: how many runs each update is of.
      step: compiled.
      state: that it goes on from.
      inputs: what else it takes.
      dtype: of the config.
    """

    runs: int
    step: jax.stages.Compiled
    state: Any
    inputs: tuple[Any, ...]
    dtype: str

    @classmethod
    def alone(cls, program: Program) -> "Timed":
        """Compiles the update of one run."""
        inputs = (_batch(program), program.numbers.at(0))
        dtype = program.plan.config.dtype
        return cls(1, program.compile_train_step(), program.start(), inputs, dtype)

    @classmethod
    def together(cls, program: Program, count: int) -> "Timed":
        """Compiles the update of `count` runs at once.

        Raises:
          ConfigError: they do not fit into the memory of a device.
        """
        joint, plan = JointProgram(program, count), program.plan
        less = f"take less than {count}"
        with precision(plan.config.dtype), explain_out_of_memory("the step", less):
            step = joint.compile_train_step()
            joint.check_memory(step, plan.placement)
            seeds = jax.device_put(jnp.arange(count, dtype=jnp.uint32), plan.placement.replicated)
            numbers = program.numbers.at(0)._replace(seed=seeds)
            states = joint.stack([program.start() for _ in range(count)])
            return cls(count, step, states, ([_batch(program)] * count, numbers), plan.config.dtype)

    def seconds(self, updates: int) -> float:
        """Makes some updates, and returns the time of them."""
        begun = time.perf_counter()
        with precision(self.dtype):
            for _ in range(updates):
                self.state, out = self.step(self.state, *self.inputs)
        jax.block_until_ready(out)
        return time.perf_counter() - begun


def measure(timed: Sequence[Timed], rounds: int) -> list[list[float]]:
    """Measures seconds of an update, `rounds` times of each, in turns."""
    repeats = []
    for each in timed:
        each.seconds(1)  # the first is slower
        repeats.append(max(1, round(SECONDS / each.seconds(1))))
    found: list[list[float]] = [[] for _ in timed]
    for _ in range(rounds):
        for each, updates, row in zip(timed, repeats, found):
            row.append(each.seconds(updates) / updates)
    return found


def _batch(program: Program) -> Any:
    plan = program.plan
    with precision(plan.config.dtype):
        return random_batch(program.abstract_batch(), plan.data.classes, plan.config.seed)
