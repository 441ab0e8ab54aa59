"""From a config to the learning rate of its run."""

import dataclasses
import math

import ml_collections

from lbsgd import times
from lbsgd.errors import ConfigError
from lbsgd.optim import learning_rate as rates
from lbsgd.timeline import Timeline

# Which float32 can still hold.
MOST_RATE = 1e38


@dataclasses.dataclass(frozen=True)
class Rate:
    """The learning rate of a run: the schedule and the numbers it was made from.

    Attributes:
      schedule: update index -> rate.
      full: k * eta, the rate after warmup.
      warmup_updates: W; 0 for no warmup.
      decay_updates: where steps of decay happen.
      warmup_rate: where warmup starts.
    """

    schedule: rates.Schedule
    full: float
    warmup_updates: int
    decay_updates: tuple[int, ...]
    warmup_rate: float


def _check_decay(full: float, factor: float, times: int) -> None:
    """Raises ConfigError where a factor above 1 takes the rate out of float32."""
    if factor > 1 and times * math.log(factor) + math.log(max(full, 1e-30)) > math.log(MOST_RATE):
        raise ConfigError(
            f"learning_rate.decay_factor={factor:g} at {times} epochs makes a learning rate of "
            f"more than {MOST_RATE:g}; a factor below 1 lowers it"
        )


def _warmup_rate(c: ml_collections.ConfigDict) -> float:
    """Where warmup starts."""
    if c.warmup_from == "reference":
        return float(c.reference_learning_rate)
    if c.warmup == "constant":
        raise ConfigError(
            "learning_rate.warmup='constant' from 'zero' would train at a rate of 0; set "
            "learning_rate.warmup_from=reference or warmup=gradual"
        )
    return 0.0


def _polynomial_decay(
    c: ml_collections.ConfigDict, full: float, warmup: int, total: int
) -> rates.Schedule:
    if c.decay_end_rate > full:
        raise ConfigError(
            f"learning_rate.decay_end_rate={c.decay_end_rate:g} is above the full rate, {full:g}; "
            "lower it"
        )
    end = total + c.decay_past_end_steps
    return rates.polynomial_decay(full, warmup, end, c.decay_power, c.decay_end_rate)


def build_rate(config: ml_collections.ConfigDict, timeline: Timeline, total: int) -> Rate:
    """The learning rate of Goyal et al. 2017, section 2, as the config selects it.

    Raises:
      ConfigError: warmup longer than training, of no length, or at no rate; decay that is none.
    """
    c = config.learning_rate
    reference = c.reference_learning_rate
    full = rates.scale_learning_rate(
        reference, c.reference_batch_size, config.batch_size, c.scaling
    )
    warmup, warmup_rate = 0, _warmup_rate(c)
    from_zero = c.warmup_from == "zero"
    if c.warmup != "none" and (from_zero or config.batch_size > c.reference_batch_size):
        warmup = times.duration(c, "warmup", timeline)
        if not warmup:
            raise ConfigError(
                f"learning_rate.warmup={c.warmup!r} needs a length of at least one update: set "
                "learning_rate.warmup_epochs, _steps or _examples, or warmup='none'"
            )
    if warmup > total:
        raise ConfigError(
            f"the warmup of {warmup} updates is longer than the training of {total}; "
            "lower learning_rate.warmup_epochs (_steps, _examples) or train longer"
        )
    boundaries: tuple[int, ...] = ()
    if c.decay == "steps":
        boundaries = tuple(timeline.update_at_epoch(epoch) for epoch in c.decay_epochs)
        if boundaries and boundaries[0] < warmup:
            raise ConfigError(
                f"learning_rate.decay_epochs={c.decay_epochs} starts at update {boundaries[0]}, "
                f"within the warmup of {warmup}; decay later or shorten the warmup"
            )
        _check_decay(full, c.decay_factor, len(boundaries))
        schedule = rates.step_decay(full, boundaries, c.decay_factor)
    elif c.decay == "cosine":
        schedule = rates.cosine_decay(full, warmup, total)
    elif c.decay == "polynomial":
        schedule = _polynomial_decay(c, full, warmup, total)
    else:
        schedule = rates.constant(full)
    if warmup and c.warmup == "gradual":
        schedule = rates.gradual_warmup(schedule, warmup_rate, full, warmup, c.warmup_power)
    elif warmup:
        schedule = rates.constant_warmup(schedule, warmup_rate, warmup)
    return Rate(schedule, full, warmup, boundaries, warmup_rate)
