"""Builds a run from its config: opens the data, asks the devices, fits the steps into memory."""

from typing import NamedTuple

import ml_collections

from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.facts import Facts, check_given, facts_of, given_facts
from lbsgd.data.source import Splits
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.run.feed import Feed
from lbsgd.run.fitting import estimate_accumulation, measure_accumulation
from lbsgd.run.plan import Plan, make_plan
from lbsgd.run.program import Program
from lbsgd.workers.topology import Topology


class Run(NamedTuple):
    """A run that is ready to train: its plan, what is compiled of it, and its batches."""

    plan: Plan
    program: Program
    feed: Feed


def build(config: ml_collections.ConfigDict) -> Run:
    """Builds the run of a resolved config on this machine.

    Raises:
      ConfigError: its parts do not fit together, or not on this machine.
    """
    topology = Topology.here(config)
    splits = build_sources(config.data, config.seed)
    data = facts_of(splits)
    check_given(config.data, data)
    program = measure_accumulation(make_plan(config, data, topology))
    corrupt = CorruptExamples(config.data.on_corrupt, config.data.max_corrupt)
    return Run(program.plan, program, Feed(program.plan, splits, corrupt))


def plan_run(config: ml_collections.ConfigDict) -> Plan:
    """Plans a run without its data and its machine, as far as the config says what they are.

    What it leaves open is asked for: the data are opened, JAX counts the devices.

    Raises:
      ConfigError: its parts do not fit together.
    """
    topology = Topology.planned(config) or Topology.here(config)
    data = given_facts(config.data) or _open(config)
    return estimate_accumulation(make_plan(config, data, topology))


def _open(config: ml_collections.ConfigDict) -> Facts:
    splits: Splits = build_sources(config.data, config.seed)
    return facts_of(splits)
