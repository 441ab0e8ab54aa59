"""Evaluates a state: loss and error over the validation set, top-5 error where it is one."""

import contextlib
from typing import Any

import jax
import numpy as np

from lbsgd.run.checks import has_top5
from lbsgd.run.feed import Feed
from lbsgd.run.program import Program
from lbsgd.run.record.monitor import Monitor
from lbsgd.schedule.timeline import Timeline
from lbsgd.step.evaluation import EvalSums
from lbsgd.step.train_step import TrainState
from lbsgd.system.devices import explain_out_of_memory, precision
from lbsgd.system.text import pluralize


class Evaluation:
    """Computes loss and errors over every validation example exactly once."""

    def __init__(self, program: Program, feed: Feed, monitor: Monitor) -> None:
        """Compiles nothing yet.

        Args:
          monitor: hears of each batch, and may end the evaluation before the next.
        """
        self._plan, self._feed, self._monitor = program.plan, feed, monitor
        self._batches = feed.eval_batches()
        self._step, self._moments = program.eval_step(), program.moments_step()

    def __call__(self, done: int, state: TrainState) -> dict[str, float] | None:
        """Evaluates the state after `done` updates; None if the run is to stop meanwhile.

        Raises:
          ConfigError: an example cannot be read, or memory does not suffice.
          RuntimeError: examples were counted twice or not at all.
        """
        remedy = f"set evaluation.batch_size to less than {self._batches.batch_size}"
        with precision(self._plan.config.dtype), explain_out_of_memory("evaluation", remedy):
            totals = self._sums(done, state)
        if totals is None:
            return None
        loss, wrong, wrong_top5, examples = totals.tolist()
        self._check_count(int(examples))
        values = {"val_loss": loss / examples, "val_error": 100.0 * wrong / examples}
        if has_top5(self._plan.data.classes):
            values["val_error_top5"] = 100.0 * wrong_top5 / examples
        return values

    def _sums(self, done: int, state: TrainState) -> np.ndarray | None:
        """Adds up the `EvalSums` of all batches; None if the run is to stop meanwhile."""
        stats = self._statistics(done, state)
        totals = np.zeros(len(EvalSums._fields))
        with contextlib.closing(iter(self._batches)) as batches:
            for batch in batches:
                if self._monitor.should_stop(done):
                    return None
                totals += jax.device_get(self._step(state.params, stats, batch))
                self._monitor.alive()
        return totals

    def _check_count(self, examples: int) -> None:
        """Checks that only corrupt examples were left out."""
        count, corrupt = self._plan.data.validation_examples, self._feed.corrupt
        most = corrupt.most * jax.process_count() if corrupt.policy == "skip" else 0
        if not count - most <= examples <= count:
            raise RuntimeError(f"evaluated {examples} of {pluralize(count, 'example')}")

    def _statistics(self, done: int, state: TrainState) -> Any:
        """Returns the running averages, or for precise batch norm the mean over a part of the set.

        That part and its augmentation are a function of the update index.
        """
        batches = self._plan.precise_batches
        if not batches:
            return state.batch_stats
        placement = self._plan.placement
        source = self._feed.other_batches(
            "precise_batch_norm",
            Timeline.constant(self._plan.data.examples, placement.batch_size),
            {placement.batch_size: placement},
        )
        total: Any = None
        for batch in source.between(done, done + batches):
            moments = self._moments(state.params, state.batch_stats, batch)
            total = moments if total is None else jax.tree.map(jax.numpy.add, total, moments)
            jax.block_until_ready(total)
        return jax.tree.map(lambda x: x / batches, total)
