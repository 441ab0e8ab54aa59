"""Trains many runs at once, alike but for the seed, in one compiled step: seeds_at_once."""

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from lbsgd import train
from lbsgd.config.keys import flatten
from lbsgd.experiments.group import Group
from lbsgd.experiments.timing import Timed, measure
from lbsgd.run.build import build
from lbsgd.run.program import Program
from lbsgd.run.record.result import Outcome
from lbsgd.system.devices import precision
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath

# Alternating measurements of each, and what part of the time counts as clearly less.
ROUNDS, CLEARLY = 5, 0.9


def run_together(
    configs: Sequence[ml_collections.ConfigDict],
    workdirs: Sequence[AnyPath],
    *,
    should_stop: Callable[[int], bool] = lambda updates: False,
    on_metrics: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> list[Outcome | Exception]:
    """Trains runs that differ in their seeds alone, each as `lbsgd.train.run` would.

    Each has its data, metrics, evaluations, checkpoints and log to itself; what it prints is in its
    log alone. One that ends early, for whatever reason, is not waited for. Those that resume from
    different updates are first brought to the same one, each alone.

    Args:
      configs: from `lbsgd.run.config.resolve`.
      workdirs: of each its own.
      should_stop: as for `train.run`; asked once for each number of updates done.
      on_metrics: called with the index of the run, the updates done, and metrics by name.

    Returns:
      for each run what came of it, or the error that it ended with.

    Raises:
      ConfigError: they cannot be trained at once.
    """
    check_together(configs, workdirs)
    results: list[Any] = [None] * len(configs)
    group = Group(len(configs), should_stop)

    def run(member: int) -> None:
        try:
            results[member] = train.run(
                configs[member],
                workdirs[member],
                should_stop=group.should_stop,
                on_metrics=_of_member(on_metrics, member),
                make_updates=group.join(member),
                shown=False,
            )
        except BaseException as error:
            results[member] = error

    group.run(run)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result
    return results


def _of_member(
    on_metrics: Callable[[int, int, Mapping[str, float]], None] | None, member: int
) -> Callable[[int, Mapping[str, float]], None] | None:
    if on_metrics is None:
        return None
    return lambda done, values: on_metrics(member, done, values)


def check_together(
    configs: Sequence[ml_collections.ConfigDict], workdirs: Sequence[AnyPath]
) -> None:
    """Checks that runs can be trained at once.

    Raises:
      ConfigError: they differ in more than the seed, or cannot share a process.
    """
    if len({str(path) for path in workdirs}) < len(configs):
        raise ConfigError("runs that are trained at once need a workdir each")
    if jax.process_count() > 1:
        raise ConfigError("several processes train one run at a time; set seeds_at_once=1")
    first, *others = (dict(flatten(config)) for config in configs)
    for other in others:
        for key, value in other.items():
            if key != "seed" and value != first[key]:
                raise ConfigError(
                    f"runs that are trained at once differ in their seeds alone; in these {key} is "
                    f"{first[key]!r} and {value!r}"
                )
    if others:
        check_seeds(configs[0])


def check_seeds(config: ml_collections.ConfigDict) -> None:
    """Checks that several seeds of a config can be trained at once in a process.

    Raises:
      ConfigError: they cannot.
    """
    if config.optimizer.name == "spngd":
        # One sum is kept for all lanes, and so would be for all runs.
        raise ConfigError(
            "the statistics of optimizer.name=spngd are those of one run at a time; set "
            "seeds_at_once=1"
        )
    if config.updates_per_call > 1:
        raise ConfigError(
            f"updates_per_call={config.updates_per_call} is for one run at a time; set "
            "seeds_at_once=1, or updates_per_call=1"
        )
    if "wandb" in config.log.sinks:
        raise ConfigError(
            "Weights & Biases has one run in a process at a time; set seeds_at_once=1, or take "
            "'wandb' out of log.sinks"
        )


def choose_together(
    config: ml_collections.ConfigDict, seeds: int, say: Callable[[str], None] = print
) -> int:
    """Chooses how many of the seeds of a config to train at once: all that fit, or one.

    It measures: a few updates of one run, and of that many at once, on random images.

    Args:
      config: from `lbsgd.run.config.resolve`.
      say: takes a line with the figures.

    Raises:
      ConfigError: the run of the config cannot be built.
    """
    if seeds < 2:
        return 1
    check_seeds(config)
    with precision(config.dtype):
        program = build(config).program
        alone = Timed.alone(program)
        joint = _most_that_fit(program, seeds)
        if joint is None:
            say("seeds_at_once=1: the memory of a device holds one run at a time")
            return 1
        times = measure([alone, joint], ROUNDS)
    one, each = (statistics.median(row) / timed.runs for row, timed in zip(times, (alone, joint)))
    chosen = joint.runs if each < CLEARLY * one else 1
    say(
        f"seeds_at_once={chosen}: an update takes {1e3 * one:.3g} ms of a run alone, and "
        f"{1e3 * each:.3g} ms of each of {joint.runs} at once (medians of {ROUNDS})"
    )
    return chosen


def _most_that_fit(program: Program, most: int) -> Timed | None:
    """Compiles the step of that many runs, or of half as many until they fit; None for one."""
    while most > 1:
        with contextlib.suppress(ConfigError):
            return Timed.together(program, most)
        most //= 2
    return None
