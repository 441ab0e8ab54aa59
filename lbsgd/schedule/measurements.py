"""Plans when a run is measured, and checks that it can be."""

from typing import NamedTuple

import ml_collections

from lbsgd.schedule import times
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize


class Measurements(NamedTuple):
    """Says after which updates what is measured; an empty set is a diagnostic that is off.

    Attributes:
      workers: updates on whose minibatch the workers' gradients are compared, just before; only
        those of more than one worker.
      confusion: after which pairs of minibatches are.
      layers: whose norms are written.
    """

    workers: frozenset[int] = frozenset()
    confusion: frozenset[int] = frozenset()
    layers: frozenset[int] = frozenset()

    def describe(self, config: ml_collections.ConfigDict) -> list[str]:
        """Describes them in a line if anything is on; in none otherwise.

        Args:
          config: the config's `diagnostics`.
        """
        confusion = config.confusion
        named = {
            "gradient noise scale at {}": self.workers,
            f"gradient confusion of {pluralize(confusion.pairs, 'pair')} of minibatches of "
            f"{confusion.batch_size:,} after {{}}": self.confusion,
            "norms of each parameter array at {}": self.layers,
        }
        parts = [
            text.format(pluralize(len(updates), "update"))
            for text, updates in named.items()
            if updates
        ]
        return [f"diagnostics: {', '.join(parts)}"] if parts else []


def plan_measurements(
    config: ml_collections.ConfigDict, timeline: Timeline, total: int
) -> Measurements:
    """Plans the measurements of a run of `total` updates.

    Raises:
      ConfigError: a diagnostic that is on cannot be had of this run.
    """
    planned = Measurements(
        *(
            times.every(config, f"diagnostics.{name}", timeline, total)
            for name in Measurements._fields
        )
    )
    if planned.workers:
        _check_workers(config, timeline, total)
        n = config.worker_batch_size
        several = {done for done in planned.workers if timeline.batch_size(done - 1) > n}
        planned = planned._replace(workers=frozenset(several))
    batch_size = config.diagnostics.confusion.batch_size
    if planned.confusion and batch_size > timeline.examples_per_epoch:
        raise ConfigError(
            f"diagnostics.confusion.batch_size={batch_size} is more than the "
            f"{timeline.examples_per_epoch:,} training examples; lower it"
        )
    return planned


def _check_workers(config: ml_collections.ConfigDict, timeline: Timeline, total: int) -> None:
    """Raises ConfigError where no single workers' gradients can be compared."""
    group, n = config.batch_norm.synced_workers, config.worker_batch_size
    if group > 1:
        raise ConfigError(
            "diagnostics.workers compares gradients of single workers, which batch_norm."
            f"synced_workers={group} mixes; set that to 1, or diagnostics.workers.every_* to 0"
        )
    if max(timeline.sizes_between(0, total)) <= n:
        raise ConfigError(
            f"diagnostics.workers compares k > 1 workers, and no update has more than "
            f"one of worker_batch_size={n}; lower that, or set diagnostics.workers.every_* to 0"
        )
