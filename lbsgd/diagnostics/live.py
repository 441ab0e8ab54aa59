"""What a run measures of itself while it trains. It changes no number of the run."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lbsgd.diagnostics import noise_scale
from lbsgd.diagnostics.confusion import Confusion, neighbour_cosines
from lbsgd.diagnostics.workers_gradient import compiled
from lbsgd.run.build import Run
from lbsgd.run.record.log import Log
from lbsgd.run.record.progress import Progress
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.step.layer_statistics import layer_names
from lbsgd.step.train_step import TrainState
from lbsgd.system.devices import explain_out_of_memory
from lbsgd.system.processes import from_process_0, is_first
from lbsgd.system.text import pluralize

# The lists in diagnostics.jsonl.
WORKERS, CONFUSION = "worker_cosines", "confusion_cosines"


class Diagnostics:
    """The diagnostics of a run at the times of its plan.

    The noise scale and the confusion wait until the devices have nothing else to do, and their time
    does not count as training. The norms of layers come with the update itself.
    """

    def __init__(
        self,
        parts: Run,
        record: Record | NoRecord,
        progress: Progress,
        log: Log,
        alive: Callable[[], None],
        should_stop: Callable[[int], bool],
    ) -> None:
        """Goes on where the record ends, and compiles nothing yet.

        Args:
          alive: called whenever a part of a measurement is done.
          should_stop: asked with the number of updates done; a confusion that is cut short is
            measured when the run goes on.
        """
        self._parts, self._record, self._progress, self._log = parts, record, progress, log
        self._alive = alive
        self._confusion = Confusion(parts, alive, should_stop)
        self._layers = layer_names(parts.abstract_state().params)
        config = parts.config.diagnostics
        self._compiled = functools.cache(
            functools.partial(compiled, parts.worker, in_turn=config.in_turn)
        )
        # Not stored anywhere: a function of the metrics.
        self._recent = noise_scale.recent(record.kept, config.workers.window)

    def at(self, done: int, state: TrainState) -> None:
        """The gradient confusion of the state after `done` updates, if it is due."""
        if done not in self._parts.diagnostics.confusion:
            return
        if from_process_0(np.array(self._record.holds(done, CONFUSION))):
            return
        self._log.drain()
        with self._log.paused(), _enough_memory():
            cosines = self._confusion(done, state)
        if cosines is None:
            return
        self._record.write_lists(done, {CONFUSION: cosines})
        values = _least_and_mean("confusion_cosine", cosines)
        self._record.write(done, values)
        self._progress.line(
            f"epoch {self._parts.timeline.epoch(done):.2f}  update {done}  gradient confusion: "
            f"cosines of {pluralize(len(cosines), 'pair')} of minibatches are "
            f"{values['confusion_cosine_min']:.3f} at least, "
            f"{values['confusion_cosine_mean']:.3f} on average"
        )

    def before(self, done: int, state: TrainState, batch: Any) -> None:
        """The workers' gradients of the update that makes `done`, on its minibatch, if due.

        Args:
          state: not changed, and not needed once this returns.
        """
        if done not in self._parts.diagnostics.workers:
            return
        self._log.drain()
        with self._log.paused(), _enough_memory():
            placement = self._parts.placements[self._parts.timeline.batch_size(done - 1)]
            found = self._compiled(placement)(state.params, state.batch_stats, batch)
            found = jax.device_get(found)
        self._alive()
        n, kn = placement.worker_batch_size, placement.batch_size
        small = float(np.mean(found.squares, dtype=np.float64))
        new = noise_scale.estimate(small, n, float(found.mean_square), kn)
        epoch = self._parts.timeline.epoch(done)
        window = self._parts.config.diagnostics.workers.window
        self._recent = self._recent.add(epoch, new, window)
        cosines = neighbour_cosines(found).tolist()
        self._record.write_lists(done, {WORKERS: cosines})
        self._record.write(done, _numbers_of(new, self._recent.average, cosines))
        if is_first():  # who alone has the metrics of before
            text = noise_scale.advice(self._recent, window, kn, n)
            self._progress.line(f"epoch {epoch:.2f}  update {done}  {text}")

    def after(self, done: int, metrics: dict[str, Any]) -> dict[str, jax.Array]:
        """The metrics of the update that made `done`, but for the norms of layers.

        At the times of the plan these are waited for and written.
        """
        layers = metrics.pop("layers", None)
        if layers is not None and done in self._parts.diagnostics.layers:
            found = jax.device_get(layers)
            by_name = {
                quantity: dict(zip(self._layers, numbers.tolist()))
                for quantity, numbers in found.items()
            }
            self._record.write_lists(done, by_name)
        return metrics


def _enough_memory() -> contextlib.AbstractContextManager[None]:
    remedy = "set diagnostics.in_turn=True, or the times of diagnostics to 0"
    return explain_out_of_memory("a diagnostic", remedy)


def _numbers_of(
    new: noise_scale.Estimate, average: noise_scale.Average, cosines: list[float]
) -> dict[str, float]:
    return {
        noise_scale.SQUARE: new.gradient_square,
        noise_scale.TRACE: new.covariance_trace,
        noise_scale.MEAN_SQUARE: average.mean.gradient_square,
        noise_scale.ERROR: average.error,
        noise_scale.MEAN_TRACE: average.mean.covariance_trace,
        "gradient_noise_scale": average.mean.noise_scale,
        **_least_and_mean("worker_cosine", cosines),
    }


def _least_and_mean(name: str, numbers: Sequence[float]) -> dict[str, float]:
    return {f"{name}_min": float(np.min(numbers)), f"{name}_mean": float(np.mean(numbers))}
