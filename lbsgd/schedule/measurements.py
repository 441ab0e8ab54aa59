"""When a run is to be looked at, and whether it can be."""

from typing import NamedTuple

import ml_collections

from lbsgd.schedule import times
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import counted


class Measurements(NamedTuple):
    """Numbers of updates done; an empty set is a diagnostic that is off.

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
        """A line if anything is on; none otherwise.

        Args:
          config: the config's `diagnostics`.
        """
        confusion = config.confusion
        named = {
            "gradient noise scale at {}": self.workers,
            f"gradient confusion of {counted(confusion.pairs, 'pair')} of minibatches of "
            f"{confusion.batch_size} after {{}}": self.confusion,
            "norms of each parameter array at {}": self.layers,
        }
        parts = [
            text.format(counted(len(updates), "update"))
            for text, updates in named.items()
            if updates
        ]
        return [f"diagnostics: {', '.join(parts)}"] if parts else []


def plan_measurements(
    config: ml_collections.ConfigDict, timeline: Timeline, total: int
) -> Measurements:
    """The plan of a run of `total` updates.

    Raises:
      ConfigError: a diagnostic that is on cannot be had of this run.
    """
    made = Measurements(
        *(
            times.every(config, f"diagnostics.{name}", timeline, total)
            for name in Measurements._fields
        )
    )
    if made.workers:
        _check_workers(config, timeline, total)
        n = config.worker_batch_size
        several = {done for done in made.workers if timeline.batch_size(done - 1) > n}
        made = made._replace(workers=frozenset(several))
    batch_size = config.diagnostics.confusion.batch_size
    if made.confusion and batch_size > timeline.examples_per_epoch:
        raise ConfigError(
            f"diagnostics.confusion.batch_size={batch_size} is more than the "
            f"{timeline.examples_per_epoch:,} training examples; lower it"
        )
    return made


def _check_workers(config: ml_collections.ConfigDict, timeline: Timeline, total: int) -> None:
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
