"""Batch sizes that change during training: what a config says of them, and Smith's equivalence.

Smith et al. 2018: the noise of SGD has the scale g = eta N / (B (1 - m)), so decaying the rate by
a factor or growing the batch by it does the same to the noise, and growing takes fewer updates.
"""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import ml_collections

from lbsgd.errors import ConfigError
from lbsgd.optim.learning_rate import Schedule, piecewise
from lbsgd.timeline import Timeline, exact


class Phase(NamedTuple):
    """From an epoch on: the batch size, and the rate as a multiple of the first one."""

    epoch: Fraction
    batch_size: int
    rate: Fraction


def growing_twin(
    batch_size: int,
    decay_epochs: Sequence[float | Fraction],
    decay_factor: float | Fraction,
    *,
    worker_batch_size: int = 1,
    largest: int = 0,
) -> list[Phase]:
    """The twin of a step decay that grows the batch instead (Smith et al. 2018, section 3).

    At each decay the batch is divided by the factor, as far as `largest` and whole workers allow;
    the rate makes up for the rest, so that rate / batch size is at any epoch that of the decay.

    Args:
      decay_factor: below 1.
      largest: batch size that is not exceeded; 0 for none. The paper took a tenth of the training
        set.

    Returns:
      the phases, the first at epoch 0.
    """
    factor, n = exact(decay_factor), worker_batch_size
    phases = [Phase(Fraction(0), batch_size, Fraction(1))]
    for passed, epoch in enumerate(decay_epochs, 1):
        noise = factor**passed
        grown = int(batch_size / noise)
        size = max(min(grown, largest or grown) // n * n, phases[-1].batch_size)
        phases.append(Phase(exact(epoch), size, noise * size / batch_size))
    return phases


def phases_of(config: ml_collections.ConfigDict) -> list[Phase]:
    """The phases where `batch_growth.in_place_of_decay` is on.

    Raises:
      ConfigError: there is no step decay to take the place of.
    """
    rate, growth = config.learning_rate, config.batch_growth
    if rate.decay != "steps" or not rate.decay_epochs or not 0 < rate.decay_factor < 1:
        raise ConfigError(
            "batch_growth.in_place_of_decay needs a decay that it takes the place of: "
            "learning_rate.decay='steps' with decay_epochs and a decay_factor below 1"
        )
    if growth.largest and growth.largest < config.batch_size:
        raise ConfigError(
            f"batch_growth.largest={growth.largest} is less than batch_size={config.batch_size}"
        )
    return growing_twin(
        config.batch_size,
        rate.decay_epochs,
        rate.decay_factor,
        worker_batch_size=config.worker_batch_size,
        largest=growth.largest,
    )


def build_timeline(config: ml_collections.ConfigDict, examples_per_epoch: int) -> Timeline:
    """The timeline of the batch sizes that the config asks for.

    Raises:
      ConfigError: times and sizes do not fit together.
    """
    growth, first = config.batch_growth, config.batch_size
    if growth.in_place_of_decay:
        if growth.sizes:
            raise ConfigError(
                "batch_growth.sizes and batch_growth.in_place_of_decay both say how the batch "
                "grows; leave one out"
            )
        phases = phases_of(config)
        grows = [b for a, b in itertools.pairwise(phases) if a.batch_size != b.batch_size]
        changes = [(phase.epoch, phase.batch_size) for phase in (phases[0], *grows)]
        return Timeline.from_schedule(examples_per_epoch, changes)
    if growth.at_epochs and growth.at_steps:
        raise ConfigError(
            "batch_growth.at_epochs and batch_growth.at_steps say the same thing; leave one out"
        )
    times = growth.at_epochs or growth.at_steps
    if len(times) != len(growth.sizes):
        raise ConfigError(
            f"batch_growth has {len(growth.sizes)} sizes and {len(times)} times for them; give "
            "each a time in at_epochs (or at_steps)"
        )
    schedule = list(zip((0, *times), (first, *growth.sizes)))
    try:
        if growth.at_steps:
            return Timeline.from_updates(examples_per_epoch, schedule)
        return Timeline.from_schedule(examples_per_epoch, schedule)
    except ValueError as error:
        raise ConfigError(
            f"batch_growth: times {times} and sizes {growth.sizes} must be positive, and the times "
            "must increase"
        ) from error


def by_size(timeline: Timeline, values: Mapping[int, float]) -> Schedule:
    """update -> the value for its batch size; past those there are values for, the last one."""
    reached = [segment for segment in timeline.segments if segment.batch_size in values]
    levels = [values[segment.batch_size] for segment in reached]
    return piecewise([segment.first_update for segment in reached[1:]], levels)


def momentum_schedule(timeline: Timeline, momenta: Mapping[int, float]) -> float | Schedule:
    """The momentum of each update; a number where it is always the same."""
    different = set(momenta.values())
    return by_size(timeline, momenta) if len(different) > 1 else different.pop()


def momentum_of_size(config: ml_collections.ConfigDict, batch_size: int) -> float:
    """The momentum at a batch size B: with compensation 1 - m is in proportion to 1 / B.

    So that eta N / (B (1 - m)) stays what it was for the first size, B0 (Smith et al. 2018,
    section 4; Mikami et al. 2018, batch-size control).

    Raises:
      ConfigError: that momentum would be negative.
    """
    momentum = config.optimizer.momentum
    if config.batch_growth.compensate != "momentum":
        return float(momentum)
    adjusted: float = 1.0 - (1.0 - momentum) * config.batch_size / batch_size
    if adjusted < 0:
        raise ConfigError(
            f"batch_growth.compensate='momentum' would need a momentum of {adjusted:.3g} at "
            f"batch size {batch_size}; start with the smallest size"
        )
    return adjusted
