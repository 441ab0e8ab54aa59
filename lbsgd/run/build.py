"""Builds a run from its config: opens the data, asks the devices, fits the steps into memory."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from lbsgd.config.keys import flatten
from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.facts import check_given, facts_of, given_facts
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.run.feed import Feed
from lbsgd.run.fitting import estimate_accumulation, measure_accumulation
from lbsgd.run.plan import Plan, make_plan
from lbsgd.run.program import Program
from lbsgd.system.errors import ConfigError
from lbsgd.system.machine import package_versions
from lbsgd.system.processes import check_processes_agree
from lbsgd.weights.initial import Arrays, look_at_weights, read_weights
from lbsgd.workers.topology import Topology


class Run(NamedTuple):
    """A run that is ready to train: its plan, what is compiled of it, and its batches."""

    plan: Plan
    program: Program
    feed: Feed


def build(
    config: ml_collections.ConfigDict,
    begun_with: Callable[[], str] = lambda: "",
    check: Callable[[dict[str, Any]], None] = lambda identity: None,
) -> Run:
    """Builds the run of a resolved config on this machine.

    Args:
      begun_with: see `lbsgd.weights.initial.read_weights`.
      check: takes the plan's identity, before anything is compiled.

    Raises:
      ConfigError: its parts do not fit together, or not on this machine.
    """
    # First of all: with different configs processes would train one network in two ways, or wait
    # for each other in collectives that only some of them enter.
    check_processes_agree(_alike(config))
    topology = Topology.here(config)
    splits = build_sources(config.data, config.seed)
    data = facts_of(splits)
    check_given(config.data, data)
    plan, weights = _with_weights(make_plan(config, data, topology), begun_with)
    check(plan.identity())
    program = dataclasses.replace(measure_accumulation(plan), weights=weights)
    corrupt = CorruptExamples(config.data.on_corrupt, config.data.max_corrupt)
    return Run(program.plan, program, Feed(program.plan, splits, corrupt))


def _with_weights(plan: Plan, begun_with: Callable[[], str]) -> tuple[Plan, Arrays]:
    """Reads the weights that the run starts from, if it does not draw them."""
    if not plan.config.init_from:
        return plan, {}
    weights, arrays = read_weights(plan.config, plan.variables(), begun_with)
    return dataclasses.replace(plan, weights=weights), arrays


def _alike(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Collects what must be the same in all processes: keys and versions."""
    # Each machine may have its data elsewhere, and cores of its own.
    own = ("data.dir", "data.threads")
    keys = {key: value for key, value in flatten(config) if key not in own}
    return {**keys, "versions": package_versions()}


def plan_run(config: ml_collections.ConfigDict, processes: int | None = None) -> Plan:
    """Plans a run without its data and its machine, as far as the config says what they are.

    What it leaves open is asked for: the data are opened, JAX counts the devices.

    Args:
      processes: that the devices are spread over, if that is known.

    Raises:
      ConfigError: its parts do not fit together.
    """
    topology = Topology.planned(config, processes) or _ask(config)
    data = given_facts(config.data) or facts_of(build_sources(config.data, config.seed))
    plan = make_plan(config, data, topology)
    if plan.config.init_from:
        weights = look_at_weights(plan.config, plan.variables())
        plan = dataclasses.replace(plan, weights=weights)
    return estimate_accumulation(plan)


def _ask(config: ml_collections.ConfigDict) -> Topology:
    """Asks this machine, and says how to plan for another."""
    try:
        return Topology.here(config)
    except ConfigError as error:
        if not config.devices:
            raise
        raise ConfigError(
            f"{error}; or, to plan for devices that are not here, set device_memory_gib (with "
            "accumulation_steps=0) and allreduce.grid (of the hierarchical all-reduce)"
        ) from error
