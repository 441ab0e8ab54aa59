"""Gradient confusion (Sankararaman et al. 2020, arXiv 1904.06963): do minibatches agree?

The paper's protocol: pairs of minibatches, the cosine of each pair's raw gradients, their minimum
and distribution.
"""

import contextlib
import math
from typing import Any

import jax
import numpy as np

from lbsgd.data.pipeline import TrainBatches
from lbsgd.diagnostics.workers_gradient import WorkerGradients, compiled
from lbsgd.run.feed import Feed
from lbsgd.run.program import Program
from lbsgd.run.record.monitor import Monitor
from lbsgd.schedule.timeline import Segment, Timeline
from lbsgd.step.train_step import TrainState
from lbsgd.step.worker import Batch, Worker, WorkerResult
from lbsgd.workers.placement import Placement, place


def neighbour_cosines(gradients: WorkerGradients) -> np.ndarray:
    """Computes cosines of neighbouring workers, `[k - 1]`, float64; NaN where a gradient is 0."""
    squares = np.asarray(gradients.squares, np.float64)
    norms = np.sqrt(squares[:-1]) * np.sqrt(squares[1:])
    # A gradient of 0 has no direction, and its cosine is no number: that is the answer.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(gradients.neighbours, np.float64) / norms


def pair_placement(devices: int, batch_size: int) -> Placement:
    """Places minibatches as workers side by side: neighbours, from the first on, are a pair."""
    # As many on each device, and an even number in all: no pair is split, and no device idle.
    return place(math.lcm(devices, 2) * batch_size, batch_size, devices=devices)


def pair_batches(feed: Feed, placement: Placement, done: int) -> TrainBatches:
    """Gives the minibatches that belong to the state after `done` updates, a few at a time.

    They follow each other in an order of their own, from the number of examples seen on: a function
    of the config and the time, which no placement changes.
    """
    whole = feed.plan.timeline
    # Where the run is: another time sees other minibatches, the same time the same ones.
    start = Segment(0, whole.examples_seen(done), placement.batch_size)
    timeline = Timeline(whole.examples_per_epoch, (start,))
    return feed.other_batches("gradient_confusion", timeline, {placement.batch_size: placement})


def _numbered(worker: Worker) -> Worker:
    """Wraps a worker that is given the number of its batch's first minibatch besides.

    How many minibatches are in a batch depends on the devices; what is drawn for one may not.
    """

    def numbered(params: Any, stats: Any, numbers: Any, rows: Batch, index: Any) -> WorkerResult:
        first, of_update = numbers
        return worker(params, stats, of_update, rows, first + index)

    return numbered


class Confusion:
    """Cosines of pairs of minibatches, each of them one worker to batch norm."""

    def __init__(self, program: Program, feed: Feed, monitor: Monitor) -> None:
        """Compiles nothing yet.

        Args:
          monitor: hears of each batch, and may end the measurement before the next.
        """
        plan, self._numbers = program.plan, program.numbers
        config = plan.config.diagnostics
        self._feed, self._monitor, self._pairs = feed, monitor, config.confusion.pairs
        self._placement = pair_placement(plan.topology.devices, config.confusion.batch_size)
        # Each minibatch is a worker of its own to batch norm, whatever is synced in training.
        self._step = compiled(
            _numbered(plan.worker), self._placement, trained=plan.trained, in_turn=config.in_turn
        )

    def __call__(self, done: int, state: TrainState) -> list[float] | None:
        """Computes the cosine of each pair after `done` updates; None if it is to stop."""
        cosines: list[float] = []
        in_batch = self._placement.workers // 2
        source = pair_batches(self._feed, self._placement, done)
        steps = math.ceil(self._pairs / in_batch)
        with contextlib.closing(source.between(0, steps)) as batches:
            for step, batch in enumerate(batches):
                if self._monitor.should_stop(done):
                    return None
                numbers = (np.int32(step * self._placement.workers), self._numbers.at(done))
                found = jax.device_get(self._step(state.params, state.batch_stats, numbers, batch))
                # Every other product is of a pair; between them are those of strangers.
                cosines += neighbour_cosines(found)[::2].tolist()
                self._monitor.alive()
        # The last batch may hold more pairs than were asked for.
        return cosines[: self._pairs]
