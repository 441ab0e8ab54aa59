"""What a run measures of itself while it trains. It changes no number of the run."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lbsgd.diagnostics import noise_scale
from lbsgd.diagnostics.confusion import Confusion, neighbour_cosines
from lbsgd.diagnostics.workers_gradient import compiled
from lbsgd.models.selection import trained_part
from lbsgd.run.feed import Feed
from lbsgd.run.program import Program
from lbsgd.run.record.monitor import Monitor
from lbsgd.run.updates import Updates
from lbsgd.step.layer_statistics import layer_names
from lbsgd.step.train_step import TrainState
from lbsgd.system.devices import explain_out_of_memory
from lbsgd.system.processes import from_process_0, is_first
from lbsgd.system.text import pluralize

# The lists in diagnostics.jsonl.
WORKERS, CONFUSION = "worker_cosines", "confusion_cosines"


class Diagnostics:
    """Measures a run at the times of its plan.

    The noise scale and the confusion wait until the devices have nothing else to do, and their time
    does not count as training. The norms of layers come with the update itself.
    """

    def __init__(self, program: Program, feed: Feed, monitor: Monitor) -> None:
        """Goes on where the record ends, and compiles nothing yet.

        Args:
          monitor: hears of each part of a measurement. A confusion that it cuts short is measured
            when the run resumes.
        """
        self._plan, self._monitor, self._record = program.plan, monitor, monitor.record
        self._numbers = program.numbers
        self._confusion = Confusion(program, feed, monitor)
        self._layers = layer_names(trained_part(self._plan.state_shapes.params, self._plan.trained))
        config = self._plan.config.diagnostics
        # One for each placement: a batch that grows has several.
        self._compiled = functools.cache(
            functools.partial(
                compiled, self._plan.worker, trained=self._plan.trained, in_turn=config.in_turn
            )
        )
        # Not stored anywhere: a function of the metrics.
        self._recent = noise_scale.recent(self._record.kept, config.workers.window)

    def at(self, done: int, updates: Updates) -> None:
        """Measures the gradient confusion of the state after `done` updates, if it is due."""
        if done not in self._plan.measurements.confusion:
            return
        # A run that was stopped after it does not measure it again; only process 0 has read that.
        if from_process_0(np.array(self._record.holds(done, CONFUSION))):
            return
        # The devices are idle then, so that throughput does not count what is measured here.
        self._monitor.drain()
        with self._monitor.paused(), _enough_memory():
            cosines = self._confusion(done, updates.state)
        if cosines is None:
            return
        self._record.write_lists(done, {CONFUSION: cosines})
        values = _least_and_mean("confusion_cosine", cosines)
        self._record.write(done, values)
        self._monitor.line(
            f"epoch {self._plan.timeline.epoch(done):.2f}  update {done}  gradient confusion: "
            f"cosines of {pluralize(len(cosines), 'pair')} of minibatches are "
            f"{values['confusion_cosine_min']:.3f} at least, "
            f"{values['confusion_cosine_mean']:.3f} on average"
        )

    def before(self, done: int, updates: Updates, batch: Any) -> None:
        """Measures the workers' gradients of the update that makes `done`, if that is due.

        Args:
          updates: whose state is not changed, and not needed once this returns.
        """
        if done not in self._plan.measurements.workers:
            return
        self._monitor.drain()
        with self._monitor.paused(), _enough_memory():
            # The update that makes `done` has the index done - 1; its batch is laid out for that.
            placement = self._plan.placement_of(done - 1)
            numbers, state = self._numbers.at(done - 1), updates.state
            batch = self._mixed(state, batch)
            found = self._compiled(placement)(state.params, state.batch_stats, numbers, batch)
            # Within the pause: the call above returns before the devices are done.
            found = jax.device_get(found)
        self._monitor.alive()
        n, kn = placement.worker_batch_size, placement.batch_size
        # Of thousands of workers: a sum in float32 would lose digits that the estimate subtracts.
        small = float(np.mean(found.squares, dtype=np.float64))
        new = noise_scale.estimate(small, n, float(found.mean_square), kn)
        epoch = self._plan.timeline.epoch(done)
        window = self._plan.config.diagnostics.workers.window
        self._recent = self._recent.add(epoch, new, window)
        cosines = neighbour_cosines(found).tolist()
        self._record.write_lists(done, {WORKERS: cosines})
        self._record.write(done, _numbers_of(new, self._recent.average, cosines))
        if is_first():  # who alone has the metrics of before
            text = noise_scale.advice(self._recent, window, kn, n)
            self._monitor.line(f"epoch {epoch:.2f}  update {done}  {text}")

    def _mixed(self, state: TrainState, batch: Any) -> Any:
        """Makes of a batch what the update trains on, where that has to do with its state."""
        mixup = self._plan.running_mixup
        return jax.jit(mixup.mix)(state.mixed, batch)[0] if mixup else batch

    def after(self, done: int, metrics: dict[str, Any]) -> dict[str, jax.Array]:
        """Takes the norms of layers out of the metrics of the update that made `done`.

        At the times of the plan these are waited for and written.
        """
        # They are computed at every update, for the step is one program, but seldom fetched.
        # Taken out in any case, for the record takes one number for each name.
        layers = metrics.pop("layers", None)
        if layers is not None and done in self._plan.measurements.layers:
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
    # Not `nanmin`: the least of the others would pass for the least of all.
    return {f"{name}_min": float(np.min(numbers)), f"{name}_mean": float(np.mean(numbers))}
