"""Converts times in a config, given in epochs, steps (updates) or examples, to updates."""

import itertools
from fractions import Fraction

import ml_collections

from lbsgd.config.times import given
from lbsgd.schedule.timeline import Timeline, exact
from lbsgd.system.errors import ConfigError

# A run with more would take decades; update indices stay far within int32.
MOST_UPDATES = 10**8
# Evaluations, or checkpoints, of one run.
MOST_TIMES = 100_000


def _update_at(timeline: Timeline, unit: str, number: float | Fraction) -> int:
    """Finds the update index nearest to a time."""
    if unit == "epochs":
        return timeline.update_at_epoch(number)
    if unit == "examples":
        return timeline.update_at_example(Fraction(number))
    return int(number)


def less_than_an_update(timeline: Timeline, unit: str, number: float | Fraction) -> str:
    """Says that a time of so many epochs or examples is too short: "1 epoch of 3 images is ..."."""
    what, many = f"{float(number):,g} {unit.removesuffix('s')}", number != 1
    if many:
        what += "s"
    if unit == "epochs":
        what += f" of {timeline.examples_per_epoch:,} images"
    size = timeline.segments[0].batch_size
    return f"{what} {'are' if many else 'is'} less than one update of {size:,}"


def duration(
    config: ml_collections.ConfigDict, name: str, timeline: Timeline, group: str = ""
) -> int:
    """Finds the update at the time `{name}_epochs`, `_steps` or `_examples`; 0 if none is given.

    Args:
      group: of the keys, for messages: "learning_rate." or "".

    Raises:
      ConfigError: two of them are given, or one that is no update.
    """
    unit, number = given(config, name)
    update = _update_at(timeline, unit, number)
    if unit and not update:
        short = less_than_an_update(timeline, unit, number)
        raise ConfigError(
            f"{group}{name}_{unit}={number}: {short}; make it longer, or batch_size smaller"
        )
    return update


def total(config: ml_collections.ConfigDict, timeline: Timeline) -> int:
    """Counts the updates of the whole training.

    Raises:
      ConfigError: its length is not given, or twice; is less than one update, or more than
        `MOST_UPDATES`.
    """
    unit, number = given(config, "total")
    if not unit:
        raise ConfigError("training has no length; set total_epochs, total_steps or total_examples")
    examples = exact(number) * (timeline.examples_per_epoch if unit == "epochs" else 1)
    if unit != "steps" and examples < timeline.segments[0].batch_size:
        raise ConfigError(
            f"{less_than_an_update(timeline, unit, number)}; raise total_{unit} or lower batch_size"
        )
    updates = _update_at(timeline, unit, number)
    if updates > MOST_UPDATES:
        raise ConfigError(
            f"training of {updates:,} updates is longer than {MOST_UPDATES:,}; lower total_{unit}"
        )
    return updates


def _offset(group: ml_collections.ConfigDict, name: str, unit: str, timeline: Timeline) -> Fraction:
    """Reads the time of the first of several, in the unit of their interval; 0 if none is given."""
    if "offset_epochs" not in group:
        return Fraction(0)
    own, number = given(group, "offset")
    if own and own != unit:
        raise ConfigError(
            f"{name}.offset_{own}={number}, but {name}.every_{unit}; give both in the same unit"
        )
    if own and not _update_at(timeline, own, exact(number)):
        raise ConfigError(
            f"{name}.offset_{own}={number}: {less_than_an_update(timeline, own, number)}; make it "
            "longer, or 0"
        )
    return exact(number)


def every(
    config: ml_collections.ConfigDict, group: str, timeline: Timeline, total: int
) -> frozenset[int]:
    """Lists the updates up to `total` after which the group's `every_epochs` (...) comes round.

    With an `offset_epochs` (...) the first of them is there, else after one interval.

    Raises:
      ConfigError: two of them are given, or one shorter than an update; an offset in another
        unit.
    """
    unit, interval = given(config[group], "every")
    updates: set[int] = set()
    if not unit:
        return frozenset()
    first = _offset(config[group], group, unit, timeline)
    if not _update_at(timeline, unit, exact(interval)):
        raise ConfigError(
            f"{group}.every_{unit}={interval}: {less_than_an_update(timeline, unit, interval)}; "
            "make it longer"
        )
    for i in itertools.count():
        update = _update_at(timeline, unit, (first or exact(interval)) + i * exact(interval))
        if update > total:
            return frozenset(updates)
        updates.add(update)
        if len(updates) > MOST_TIMES:
            raise ConfigError(
                f"{group}.every_{unit}={interval} comes round more than {MOST_TIMES:,} times; make "
                "it longer"
            )
    raise AssertionError("unreachable")
