"""Evaluates a state over the validation set, by what its task sums up."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lbsgd.data.corrupt import CorruptExamples
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
from lbsgd.tasks.task import Task

# Of what a task evaluates, by name, over all examples so far; numpy, float64.
Sums = Mapping[str, np.ndarray]


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

    def _sums(self, done: int, params: Any, stats: Any) -> Sums | None:
        """Adds up the sums of all batches; None if the run is to stop meanwhile."""
        if self._plan.precise_batches:
            where = self._program, self._feed, self._moments
            stats = precise_statistics(*where, done, params, stats)
        totals: Sums = {}
        with contextlib.closing(iter(self._batches)) as batches:
            for batch in batches:
                if self._monitor.should_stop(done):
                    return None
                totals = add_sums(totals, self._step(params, stats, batch))
                self._monitor.alive()
        return totals

    def _summarized(self, sums: Sums) -> dict[str, float]:
        """Makes the task's numbers of its sums, once it is sure that all examples were counted."""
        config, count = self._plan.config, self._plan.data.validation_examples
        check_count(sums, count, self._feed.corrupt)
        return summarize(self._plan.task, config.task.name, sums)


def add_sums(totals: Sums, sums: Mapping[str, jax.Array]) -> Sums:
    """Adds the sums of a batch to those of the batches before."""
    # In float64, and on the host: counts of examples are exact there.
    found = {name: np.asarray(x, np.float64) for name, x in jax.device_get(dict(sums)).items()}
    # Of numpy, a sum of scalars is no array.
    return {name: np.asarray(totals.get(name, 0.0) + x) for name, x in found.items()}


def check_count(sums: Sums, count: int, corrupt: CorruptExamples) -> int:
    """Counts the examples that were evaluated, all but corrupt ones.

    Args:
      count: how many there are.

    Raises:
      RuntimeError: examples were counted twice or not at all.
    """
    examples = int(sums[EXAMPLES])
    most = corrupt.most * jax.process_count() if corrupt.policy == "skip" else 0
    if not count - most <= examples <= count:
        raise RuntimeError(f"evaluated {examples} of {pluralize(count, 'example')}")
    return examples


def summarize(task: Task, name: str, sums: Sums) -> dict[str, float]:
    """Makes the numbers that a task declares for validation of the sums over all examples.

    Args:
      name: of the task, for messages.

    Raises:
      ConfigError: it makes others.
    """
    own = {key: total for key, total in sums.items() if key != EXAMPLES}
    values = dict(task.summarize(own, int(sums[EXAMPLES])))
    if values.keys() != task.validation.keys():
        raise ConfigError(
            f"the task {name!r} evaluates {', '.join(values)}, and declares "
            f"{', '.join(task.validation)}"
        )
    return {key: float(values[key]) for key in task.validation}


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
