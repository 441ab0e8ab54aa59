"""Finds how many accumulation steps a run needs: by compiling, or from its traced step."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax

from lbsgd.data.pipeline import AHEAD
from lbsgd.models.selection import trained_part
from lbsgd.run.plan import Plan
from lbsgd.run.program import Program
from lbsgd.step import memory
from lbsgd.system.cache import cache_folder
from lbsgd.system.devices import IN_FLIGHT, is_out_of_memory
from lbsgd.system.machine import describe_machine
from lbsgd.system.processes import is_first
from lbsgd.system.text import pluralize
from lbsgd.workers import fit
from lbsgd.workers.compiler import compiler_options
from lbsgd.workers.placement import Placement

# Of training that a device holds: its own, those of the updates that wait, those loaded ahead.
MINIBATCHES = 1 + IN_FLIGHT + AHEAD


def measure_accumulation(plan: Plan) -> Program:
    """Compiles a run's steps as its memory asks for, where accumulation_steps=0 leaves it open.

    Raises:
      ConfigError: not even one worker at a time fits.
    """
    if plan.config.accumulation_steps:
        return Program(plan)
    measure = _Compilation(plan)
    step_memory = fit.StepMemory(
        measure,
        _state_bytes(plan) + memory.bytes_of(_gradient(plan)),
        _cache_file(),
        _cache_key(plan),
    )

    def choose(size: int, workers: int) -> Placement:
        each = math.ceil(workers / plan.topology.devices)
        return fit.choose(
            functools.partial(plan.place, size),
            each,
            step_memory,
            lambda placement: waiting_bytes(plan, placement),
            plan.topology.device_memory,
        )

    chosen = {size: choose(size, p.workers) for size, p in plan.placements.items()}
    # Measured with whole images, which are the largest.
    kept = {
        (placement, plan.image_shape): step
        for placement, step in measure.compiled.items()
        if placement in chosen.values()
    }
    return Program(dataclasses.replace(plan, placements=chosen), kept)


class _Compilation:
    """Measures the memory of a step by compiling it, and keeps what it has compiled."""

    def __init__(self, plan: Plan) -> None:
        self.program, self.compiled = Program(plan), dict[Placement, jax.stages.Compiled]()

    def __call__(self, placement: Placement) -> int:
        if is_first():
            workers = pluralize(placement.lanes, "worker")
            print(f"lbsgd: compiles {workers} a device, for memory", file=sys.stderr, flush=True)
        try:
            step = self.compiled[placement] = self.program.compile_train_step(placement)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return fit.TOO_MANY
        return fit.memory_of(step, batch_bytes(self.program.plan, placement))


def batch_bytes(plan: Plan, placement: Placement) -> int:
    """Bytes of a minibatch on one device."""
    return memory.bytes_of(plan.batch_shapes(placement)) // placement.devices


def waiting_bytes(plan: Plan, placement: Placement) -> int:
    """Bytes of all minibatches that one device holds; those of a call are there together."""
    return MINIBATCHES * plan.config.updates_per_call * batch_bytes(plan, placement)


def _state_bytes(plan: Plan) -> int:
    """Counts the bytes of the state on one device."""
    stored = plan.state_shapes
    replicated = memory.bytes_of(stored.replace(mixed=None, curvature=None))
    # Shared out, but there twice: which of the two is kept is known when the update is made.
    devices = plan.topology.devices
    mixed = math.ceil(memory.bytes_of(stored.mixed) / devices)
    return replicated + 2 * (mixed + curvature_bytes(plan))


def curvature_bytes(plan: Plan) -> int:
    """Counts the bytes of statistics that one device keeps."""
    if not plan.second_order:
        return 0
    kept = plan.shapes_on_devices(plan.placement).curvature
    specs = plan.second_order.precondition.specs()
    shared_out = jax.tree.map(
        lambda x, spec: memory.bytes_of(x) // (plan.topology.devices if spec else 1), kept, specs
    )
    return sum(jax.tree.leaves(shared_out))


def _gradient(plan: Plan) -> Any:
    """Gives shapes and types of the gradient."""
    return trained_part(plan.state_shapes.params, plan.trained)


def _cache_file() -> pathlib.Path | None:
    cache = cache_folder()
    return cache / "step_memory.json" if cache else None


def _cache_key(plan: Plan) -> str:
    c = plan.config.allreduce
    exchange = [c.to_dict(), compiler_options(c, plan.topology)]  # buckets take memory too
    remat = plan.config.model.remat  # as a machine key, no part of what the run is
    identity = [plan.identity(), exchange, remat, plan.topology.devices, describe_machine()]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def estimate_accumulation(plan: Plan) -> Plan:
    """Estimates a run's accumulation steps from its traced step, where the config asks for that.

    It compiles nothing, and needs neither the devices nor the data. XLA may need more or less: a
    run measures when it starts (`measure_accumulation`).
    """
    if plan.config.accumulation_steps:
        return plan
    needed, limit = estimated_memory(plan), plan.topology.device_memory
    chosen = {
        size: fit.first_that_fits(
            functools.partial(plan.place, size),
            math.ceil(p.workers / plan.topology.devices),
            needed,
            limit,
        )
        for size, p in plan.placements.items()
    }
    largest = max(map(needed, chosen.values()))
    line = f"estimated from the traced step: {fit.shown_bytes(largest)} of the "
    line += f"{fit.shown_bytes(limit)} of a device; a run measures it when it starts"
    if largest > limit:
        line += ". That is more than there is: lower worker_batch_size, or the size of the images"
    return dataclasses.replace(plan, placements=chosen, estimated=line)


def estimated_memory(plan: Plan) -> Callable[[Placement], int]:
    """Traces the update with the fewest lanes.

    Returns:
      placement -> bytes that its update and the minibatches it waits for need on one device, about.
    """
    fewest = _fewest_lanes(plan)
    gradient = memory.bytes_of(_gradient(plan))
    shapes = {tuple(leaf.shape) for leaf in jax.tree.leaves(_gradient(plan))}
    peak = memory.peak(plan.trace(fewest).jaxpr, shapes)
    fixed = _state_bytes(plan) + max(peak.fixed, gradient)

    def needed(placement: Placement) -> int:
        activations = math.ceil(peak.others * placement.lanes / fewest.lanes)
        batches = waiting_bytes(plan, placement)
        total = gradient if placement.accumulation_steps > 1 else 0
        return fixed + activations + total + batches

    return needed


def _fewest_lanes(plan: Plan) -> Placement:
    """Finds the placement of the first batch size with the most accumulation steps there can be."""
    placement = plan.placement
    each = math.ceil(placement.workers / plan.topology.devices)
    place = functools.partial(plan.place, placement.batch_size)
    *_, fewest = fit.candidates(place, each)
    return fewest
