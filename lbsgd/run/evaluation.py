"""Evaluates a state over the validation set, by what its task sums up."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lbsgd.run.feed import Feed
from lbsgd.run.program import Program
from lbsgd.run.record.monitor import Monitor
from lbsgd.run.target import OF_AVERAGE
from lbsgd.schedule.timeline import Timeline
from lbsgd.step.evaluation import EXAMPLES
from lbsgd.step.train_step import TrainState
from lbsgd.system.devices import explain_out_of_memory, precision
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize


class Evaluation:
    """Computes the metrics of a task over every validation example exactly once."""

    def __init__(self, program: Program, feed: Feed, monitor: Monitor) -> None:
        """Compiles nothing yet.

        Args:
          monitor: hears of each batch, and may end the evaluation before the next.
        """
        self._program, self._feed, self._monitor = program, feed, monitor
        self._plan, self._batches = program.plan, feed.eval_batches()
        self._step, self._moments = program.eval_step(), program.moments_step()

    def __call__(self, done: int, state: TrainState) -> dict[str, float] | None:
        """Evaluates the state after `done` updates; None if the run is to stop meanwhile.

        Averaged weights are evaluated beside, where there are any.

        Raises:
          ConfigError: an example cannot be read, or memory does not suffice.
          RuntimeError: examples were counted twice or not at all.
        """
        remedy = f"set evaluation.batch_size to less than {self._batches.batch_size}"
        weights = {"": (state.params, state.batch_stats)}
        if state.ema is not None:
            weights[OF_AVERAGE] = state.ema
        found: dict[str, float] = {}
        for ending, (params, stats) in weights.items():
            with precision(self._plan.config.dtype), explain_out_of_memory("evaluation", remedy):
                sums = self._sums(done, params, stats)
            if sums is None:
                return None
            values = self._summarized(sums)
            found |= {f"val_{name}{ending}": value for name, value in values.items()}
        return found

    def _sums(self, done: int, params: Any, stats: Any) -> dict[str, np.ndarray] | None:
        """Adds up the sums of all batches; None if the run is to stop meanwhile."""
        if self._plan.precise_batches:
            where = self._program, self._feed, self._moments
            stats = precise_statistics(*where, done, params, stats)
        totals: dict[str, np.ndarray] = {}
        with contextlib.closing(iter(self._batches)) as batches:
            for batch in batches:
                if self._monitor.should_stop(done):
                    return None
                for name, part in jax.device_get(self._step(params, stats, batch)).items():
                    # In float64, and on the host: counts of examples are exact there.
                    total = totals.get(name, 0.0) + np.asarray(part, np.float64)
                    totals[name] = np.asarray(total)  # of numpy, a sum of scalars is none
                self._monitor.alive()
        return totals

    def _summarized(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Makes the task's numbers of its sums, once it is sure that all examples were counted."""
        examples, task = int(sums[EXAMPLES]), self._plan.task
        self._check_count(examples)
        own = {name: total for name, total in sums.items() if name != EXAMPLES}
        values = dict(task.summarize(own, examples))
        if values.keys() != task.validation.keys():
            raise ConfigError(
                f"the task {self._plan.config.task.name!r} evaluates {', '.join(values)}, and "
                f"declares {', '.join(task.validation)}"
            )
        return {name: float(values[name]) for name in task.validation}

    def _check_count(self, examples: int) -> None:
        """Checks that only corrupt examples were left out."""
        count, corrupt = self._plan.data.validation_examples, self._feed.corrupt
        most = corrupt.most * jax.process_count() if corrupt.policy == "skip" else 0
        if not count - most <= examples <= count:
            raise RuntimeError(f"evaluated {examples} of {pluralize(count, 'example')}")


def precise_statistics(
    program: Program, feed: Feed, moments: Callable[..., Any], done: int, params: Any, stats: Any
) -> Any:
    """Computes the statistics of precise batch norm: the mean over a part of the training set.

    That part and its augmentation are a function of the update index.

    Args:
      moments: `program.moments_step()`.
      done: updates.
      params, stats: of the network; stats is like what is computed.
    """
    plan = program.plan
    placement, batches = plan.placement, plan.precise_batches
    source = feed.other_batches(
        "precise_batch_norm",
        Timeline.constant(plan.data.examples, placement.batch_size),
        {placement.batch_size: placement},
    )
    total: Any = None
    for update, batch in enumerate(source.between(done, done + batches), done):
        found = moments(params, stats, program.numbers.at(update), batch)
        total = found if total is None else jax.tree.map(jax.numpy.add, total, found)
        jax.block_until_ready(total)
    return jax.tree.map(lambda x: x / batches, total)
