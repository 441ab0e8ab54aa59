"""Builds the learning rate schedule of a run from its config."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import ml_collections
from jaxtyping import Float

from lbsgd.schedule import batch_growth, times
from lbsgd.schedule import functions as rates
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize

# Which float32 can still hold.
MOST_RATE = 1e38


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """Holds the learning rate of a run: the schedule and the numbers it was made from.

    Attributes:
      schedule: update index -> rate.
      full: k * eta, the rate that warmup rises to.
      warmup_updates: W; 0 for no warmup.
      decay_updates: where a decay in steps changes the rate.
      warmup_rate: where warmup starts.
      decay_span: the updates at which a cosine or polynomial begins, and would be over; (0, 0)
        for none.
    """

    schedule: rates.Schedule
    full: float
    warmup_updates: int
    decay_updates: tuple[int, ...]
    warmup_rate: float
    decay_span: tuple[int, int]


def _check_decay(full: float, factor: float, times: int) -> None:
    """Raises ConfigError where a factor above 1 takes the rate out of float32."""
    if factor > 1 and times * math.log(factor) + math.log(max(full, 1e-30)) > math.log(MOST_RATE):
        raise ConfigError(
            f"learning_rate.decay_factor={factor:g} at {times} epochs makes a learning rate of "
            f"more than {MOST_RATE:g}; a factor below 1 lowers it"
        )


def _warmup_rate(c: ml_collections.ConfigDict) -> float:
    """Finds the learning rate at which warmup starts."""
    if c.warmup_from == "reference":
        return float(c.reference_learning_rate)
    if c.warmup == "constant":
        raise ConfigError(
            "learning_rate.warmup='constant' from 'zero' would train at a rate of 0; set "
            "learning_rate.warmup_from=reference or warmup=gradual"
        )
    return 0.0


def _polynomial_decay(
    c: ml_collections.ConfigDict, full: float, timeline: Timeline, span: tuple[int, int]
) -> rates.Schedule:
    """Makes the polynomial decay that the config asks for."""
    if c.decay_end_rate > full:
        raise ConfigError(
            f"learning_rate.decay_end_rate={c.decay_end_rate:g} is above the full rate, {full:g}; "
            "lower it"
        )
    start, end, clock = _clock(timeline, *span)
    return rates.polynomial_decay(full, start, end, c.decay_power, c.decay_end_rate, clock)


def _decay_span(
    c: ml_collections.ConfigDict, timeline: Timeline, warmup: int, total: int
) -> tuple[int, int]:
    """Finds the updates at which a cosine or polynomial begins, and is over."""
    begin = warmup if c.decay_from == "warmup" else 0
    end = total + (c.decay_past_end_steps if c.decay == "polynomial" else 0)
    start = times.duration(c, "decay_start", timeline, "learning_rate.")
    if 0 < start < warmup:
        raise ConfigError(
            f"learning_rate.decay_start_* is update {start:,}, within the warmup of {warmup:,}; "
            "decay later or shorten the warmup"
        )
    begin = start or begin
    last = times.duration(c, "decay_end", timeline, "learning_rate.")
    if last and last <= begin:
        raise ConfigError(
            f"learning_rate.decay_end_* is update {last:,}, and the decay begins at {begin:,}; end "
            "later or begin sooner"
        )
    return begin, last or end


def build_learning_rate(
    config: ml_collections.ConfigDict, timeline: Timeline, total: int
) -> LearningRate:
    """Builds the learning rate of Goyal et al. 2017, section 2, as the config selects it.

    Args:
      total: updates of the whole training.

    Raises:
      ConfigError: warmup longer than training, of no length, or at no rate; a decay that cannot be.
    """
    c = config.learning_rate
    reference = c.reference_learning_rate
    full = rates.scale_learning_rate(
        reference, c.reference_batch_size, config.batch_size, c.scaling
    )
    warmup, warmup_rate = 0, _warmup_rate(c)
    from_zero = c.warmup_from == "zero"
    if c.warmup != "none" and (from_zero or config.batch_size > c.reference_batch_size):
        warmup = times.duration(c, "warmup", timeline, "learning_rate.")
        if not warmup:
            raise ConfigError(
                f"learning_rate.warmup={c.warmup!r} needs a length: set learning_rate."
                "warmup_epochs, _steps or _examples, or warmup='none'"
            )
    if warmup > total:
        raise ConfigError(
            f"the warmup of {pluralize(warmup, 'update')} is longer than the training "
            f"of {total:,}; lower learning_rate.warmup_epochs (_steps, _examples) or train longer"
        )
    decays: tuple[int, ...] = ()
    span = (0, 0)
    if c.decay in ("cosine", "polynomial"):
        span = _decay_span(c, timeline, warmup, total)
    if c.decay == "steps":
        schedule, decays = _step_decay(config, timeline, full, warmup)
    elif c.decay == "cosine":
        schedule = rates.cosine_decay(full, *_clock(timeline, *span))
    elif c.decay == "polynomial":
        schedule = _polynomial_decay(c, full, timeline, span)
    else:
        schedule = rates.constant(full)
    if warmup and c.warmup == "gradual":
        _, length, clock = _clock(timeline, 0, warmup)
        schedule = rates.gradual_warmup(schedule, warmup_rate, full, length, c.warmup_power, clock)
    elif warmup:
        schedule = rates.constant_warmup(schedule, warmup_rate, warmup)
    if config.batch_growth.compensate == "rate":
        schedule = rates.product(schedule, _in_proportion(config, timeline, full))
    return LearningRate(schedule, full, warmup, decays, warmup_rate, span)


def _step_decay(
    config: ml_collections.ConfigDict, timeline: Timeline, full: float, warmup: int
) -> tuple[rates.Schedule, tuple[int, ...]]:
    """Makes the decay in steps, or what growing the batch leaves of it, and lists its updates."""
    c = config.learning_rate
    boundaries = [timeline.update_at_epoch(epoch) for epoch in c.decay_epochs]
    if 0 in boundaries:
        short = times.less_than_an_update(timeline, "epochs", c.decay_epochs[0])
        raise ConfigError(
            f"learning_rate.decay_epochs={c.decay_epochs}: {short}, so that none would be at the "
            "full rate; decay later"
        )
    if boundaries and boundaries[0] < warmup:
        raise ConfigError(
            f"learning_rate.decay_epochs={c.decay_epochs} starts at update {boundaries[0]}, "
            f"within the warmup of {warmup}; decay later or shorten the warmup"
        )
    _check_decay(full, c.decay_factor, len(boundaries))
    if not config.batch_growth.in_place_of_decay:
        return rates.step_decay(full, boundaries, c.decay_factor), tuple(boundaries)
    phases = batch_growth.phases_of(config)
    levels = [full * float(phase.rate) for phase in phases]
    changes = [t for t, a, b in zip(boundaries, phases, phases[1:]) if a.rate != b.rate]
    return rates.piecewise(boundaries, levels), tuple(changes)


def _clock(timeline: Timeline, start: int, end: int) -> tuple[float, float, rates.Schedule]:
    """Converts two update indices to times, and makes update index -> time.

    Time is examples seen / first batch size, so a rate that rises or falls with time does so alike
    for each example, whatever the batch size is. With one size it is the update index, exactly.
    """
    # In units of updates, not of examples: float32 counts these exactly up to 16 million only.
    first = timeline.segments[0].batch_size
    starts = [s.first_update for s in timeline.segments]
    times = [s.first_example / first for s in timeline.segments]
    lengths = [s.batch_size / first for s in timeline.segments]

    def clock(update_index: jax.typing.ArrayLike) -> Float[rates.Values, "..."]:
        at = [
            rates.piecewise(starts[1:], levels)(update_index) for levels in (starts, times, lengths)
        ]
        index = rates.library_of(update_index).asarray(update_index)
        return at[1] + (index.astype(at[0].dtype) - at[0]) * at[2]

    time_of = [timeline.examples_seen(update) / first for update in (start, end)]
    return time_of[0], time_of[1], clock


def _in_proportion(
    config: ml_collections.ConfigDict, timeline: Timeline, full: float
) -> rates.Schedule:
    """Makes what the scaling rule multiplies the rate by as the batch size changes."""
    c = config.learning_rate

    def factor(size: int) -> float:
        rate = rates.scale_learning_rate(
            c.reference_learning_rate, c.reference_batch_size, size, c.scaling
        )
        return rate / full

    return batch_growth.by_size(
        timeline, {s.batch_size: factor(s.batch_size) for s in timeline.segments}
    )


def sgd_noise_scale(
    rate: rates.Schedule, momenta: Mapping[int, float], timeline: Timeline
) -> rates.Schedule:
    """Computes eta N / (B (1 - m)), the scale of the noise of SGD for B << N (Smith et al. 2018).

    Args:
      momenta: m by batch size B.
    """
    count = timeline.examples_per_epoch
    per_rate = {size: count / (size * (1.0 - m)) for size, m in momenta.items()}
    return rates.product(rate, batch_growth.by_size(timeline, per_rate))
