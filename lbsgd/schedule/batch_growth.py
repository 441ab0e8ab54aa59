"""Grows the batch during training: what a config says of it, and Smith's equivalence.

Smith et al. 2018: the noise of SGD has the scale g = eta N / (B (1 - m)), so decaying the rate by
a factor or growing the batch by it does the same to the noise, and growing takes fewer updates.
"""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import ml_collections

from lbsgd.schedule.functions import Schedule, piecewise
from lbsgd.schedule.timeline import Timeline, exact
from lbsgd.system.errors import ConfigError


class Phase(NamedTuple):
    """Holds from an epoch on: the batch size, and the rate as a multiple of the first one."""

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
    """Makes the twin of a step decay that grows the batch instead (Smith et al. 2018, section 3).

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
    """Lists the phases where `batch_growth.in_place_of_decay` is on.

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


def _check_keys(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError where a key of `batch_growth` contradicts another."""
    growth, rate, optimizer = config.batch_growth, config.learning_rate, config.optimizer.name
    times = growth.at_epochs or growth.at_steps
    # What is wrong, and what to do about it.
    problems = {
        "sizes and in_place_of_decay both say how the batch grows; leave one out": (
            growth.in_place_of_decay and (growth.sizes or times)
        ),
        "in_place_of_decay keeps rate / batch size already, which compensate would undo; set that "
        "to 'none'": growth.in_place_of_decay and growth.compensate != "none",
        "at_epochs and at_steps say the same thing; leave one out": (
            growth.at_epochs and growth.at_steps
        ),
        f"there are {len(growth.sizes)} sizes and {len(times)} times for them; give each a time in "
        "at_epochs (or at_steps)": len(growth.sizes) != len(times),
        f"compensate='momentum' is for momentum, which optimizer.name={optimizer!r} has not": (
            growth.compensate == "momentum" and optimizer not in ("sgd", "lars")
        ),
        "compensate='rate' follows learning_rate.scaling, which is 'none'; set that to 'linear' or "
        "'sqrt'": growth.compensate == "rate" and rate.scaling == "none",
        "compensate='rate' multiplies the rate that learning_rate.decay_end_rate wants to be "
        "absolute; set one of them aside": (
            growth.compensate == "rate" and rate.decay == "polynomial" and rate.decay_end_rate
        ),
    }
    for problem, there in problems.items():
        if there:
            raise ConfigError(f"batch_growth: {problem}")


def build_timeline(config: ml_collections.ConfigDict, examples_per_epoch: int) -> Timeline:
    """Builds the timeline of the batch sizes that the config asks for.

    Raises:
      ConfigError: times and sizes do not fit together, or a size would last no update.
    """
    _check_keys(config)
    growth = config.batch_growth
    schedule = [(Fraction(0), config.batch_size)]
    if growth.in_place_of_decay:
        pairs = itertools.pairwise(phases_of(config))
        schedule += [(b.epoch, b.batch_size) for a, b in pairs if a.batch_size != b.batch_size]
    else:
        times = growth.at_epochs or growth.at_steps
        schedule += [(exact(time), size) for time, size in zip(times, growth.sizes)]
    make = Timeline.from_updates if growth.at_steps else Timeline.from_schedule
    try:
        timeline = make(examples_per_epoch, schedule)
    except ValueError as error:
        when = ", ".join(f"{float(time):g}" for time, _ in schedule[1:])
        raise ConfigError(
            f"batch_growth: the batch size changes at {when}; these must be above 0 and increase"
        ) from error
    for segment, after in itertools.pairwise(timeline.segments):
        if segment.first_update == after.first_update:
            raise ConfigError(
                f"batch_growth: batch size {segment.batch_size} would last no update, for "
                f"{after.batch_size} begins at update {after.first_update} too; leave it out, or "
                "more time between the two"
            )
    return timeline


def by_size(timeline: Timeline, values: Mapping[int, float]) -> Schedule:
    """Makes update index -> the value for its batch size; past those with a value, the last one."""
    reached = [segment for segment in timeline.segments if segment.batch_size in values]
    levels = [values[segment.batch_size] for segment in reached]
    return piecewise([segment.first_update for segment in reached[1:]], levels)


def momentum_schedule(timeline: Timeline, momenta: Mapping[int, float]) -> float | Schedule:
    """Makes the momentum of each update; a number where it is always the same."""
    different = set(momenta.values())
    return by_size(timeline, momenta) if len(different) > 1 else different.pop()


def momentum_of_size(config: ml_collections.ConfigDict, batch_size: int) -> float:
    """Computes the momentum at a batch size B: compensated, 1 - m is in proportion to 1 / B.

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
