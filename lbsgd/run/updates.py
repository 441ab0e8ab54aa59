"""Makes the updates of a run: holds its state, and changes it by compiled steps."""

from collections.abc import Callable
from typing import Protocol

import jax

from lbsgd.run.program import CompiledSteps, Program
from lbsgd.step.train_step import TrainState
from lbsgd.step.worker import Batch

Metrics = dict[str, jax.Array]


class Updates(Protocol):
    """Makes updates, one after the other."""

    @property
    def state(self) -> TrainState:
        """The state after all updates so far; the next one may take its memory."""

    def wait(self, update: int) -> None:
        """Waits until the update of this index can be made: until it is compiled."""

    def __call__(self, update: int, batch: Batch) -> Metrics:
        """Makes the update of this index, and returns its metrics before they are computed."""

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

    def wait(self, update: int) -> None:
        """Waits until the update of this index is compiled."""
        self._steps(update)

    def __call__(self, update: int, batch: Batch) -> Metrics:
        """Makes the update of this index."""
        metrics: Metrics
        self.state, metrics = self._steps(update)(self.state, batch, self._numbers.at(update))
        return metrics

    def close(self) -> None:
        """Ends the compiling."""
        self._steps.close()
