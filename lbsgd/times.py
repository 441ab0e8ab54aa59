"""Times in a config, given in epochs, steps (updates) or examples, as updates."""

import itertools
from fractions import Fraction

import ml_collections

from lbsgd.errors import ConfigError
from lbsgd.timeline import Timeline, exact

# A run with more would take decades; update indices stay far within int32.
MOST_UPDATES = 10**8
# Evaluations, or checkpoints, of one run.
MOST_TIMES = 100_000


def given(config: ml_collections.ConfigDict, name: str) -> tuple[str, float]:
    """The unit and the number of the time called `name`; ("", 0) if none is given.

    Raises:
      ConfigError: it is given twice.
    """
    units = ("epochs", "steps", "examples")
    times = {unit: config[f"{name}_{unit}"] for unit in units if config[f"{name}_{unit}"]}
    if len(times) > 1:
        keys = " and ".join(f"{name}_{unit}={value}" for unit, value in times.items())
        raise ConfigError(f"{keys} say the same thing; set all but one to 0")
    return next(iter(times.items()), ("", 0))


def _update_at(timeline: Timeline, unit: str, number: float | Fraction) -> int:
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
    """The update at the time `{name}_epochs`, `_steps` or `_examples`; 0 if none is given.

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
    """The updates of the whole training.

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


def every(
    config: ml_collections.ConfigDict, group: str, timeline: Timeline, total: int
) -> frozenset[int]:
    """The updates up to `total` after which the group's `every_epochs` (...) comes round.

    Raises:
      ConfigError: two of them are given, or one shorter than an update.
    """
    unit, interval = given(config[group], "every")
    updates: set[int] = set()
    if not unit:
        return frozenset()
    if not _update_at(timeline, unit, exact(interval)):
        raise ConfigError(
            f"{group}.every_{unit}={interval}: {less_than_an_update(timeline, unit, interval)}; "
            "make it longer"
        )
    for i in itertools.count(1):
        update = _update_at(timeline, unit, i * exact(interval))
        if update > total:
            return frozenset(updates)
        updates.add(update)
        if len(updates) > MOST_TIMES:
            raise ConfigError(
                f"{group}.every_{unit}={interval} comes round more than {MOST_TIMES:,} times; make "
                "it longer"
            )
    raise AssertionError("unreachable")
