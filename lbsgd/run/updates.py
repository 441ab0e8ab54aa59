"""Makes the updates of a run: holds its state, and changes it by compiled steps."""

import contextlib
from collections.abc import Callable
from typing import Protocol

import jax

from lbsgd.run.calls import Call
from lbsgd.run.plan import Plan
from lbsgd.run.program import CompiledSteps, Program
from lbsgd.step.train_step import TrainState
from lbsgd.step.worker import Batch
from lbsgd.system.devices import explain_out_of_memory

Metrics = dict[str, jax.Array]


class Updates(Protocol):
    """Makes updates, one after the other."""

    @property
    def state(self) -> TrainState:
        """The state after all updates so far; the next one may take its memory."""

    def wait(self, call: Call) -> None:
        """Waits until a call can be made: until it is compiled."""

    def __call__(self, call: Call, batch: Batch) -> Metrics:
        """Makes the updates of a call, and returns their metrics before they are computed.

        Batch and metrics are those of its update; those of several are stacked.
        """

    def close(self) -> None:
        """Ends what goes on in threads."""


# (program, the state to begin with, updates done) -> what makes the updates from there on
MakeUpdates = Callable[[Program, TrainState, int], Updates]


class OwnUpdates:
    """Makes the updates of a run by steps of its own.

    Attributes:
      state: after all updates so far; donated to the next.
    """

    def __init__(
        self, program: Program, state: TrainState, done: int, until: int | None = None
    ) -> None:
        """Starts to compile what the updates from `done` on need.

        Args:
          until: the update index that it ends before; by default that of the run.
        """
        self.state, self._numbers = state, program.numbers
        self._steps = CompiledSteps(program, done, until)

    def wait(self, call: Call) -> None:
        """Waits until a call is compiled."""
        self._steps(*call)

    def __call__(self, call: Call, batch: Batch) -> Metrics:
        """Makes the updates of a call."""
        metrics: Metrics
        several = call.updates > 1
        numbers = self._numbers.of_call(*call) if several else self._numbers.at(call.first)
        self.state, metrics = self._steps(*call)(self.state, batch, numbers)
        return metrics

    def close(self) -> None:
        """Ends the compiling."""
        self._steps.close()


def enough_memory_for_step(plan: Plan, update: int) -> contextlib.AbstractContextManager[None]:
    """Says what to set where the step of an update takes more memory than there is."""
    placement = plan.placement_of(update)
    remedy = "lower worker_batch_size, or the size of images or of the network"
    # A group of synced batch norm runs in one step: fewer lanes than it has there cannot be.
    if placement.lanes > placement.lanes_in_group:
        remedy = f"set accumulation_steps to more than {placement.accumulation_steps}"
        if plan.config.accumulation_steps:
            remedy += ", or to 0 for the fewest that fit"
    if plan.config.updates_per_call > 1:
        remedy += "; or set updates_per_call to less"
    return explain_out_of_memory("training", remedy)
