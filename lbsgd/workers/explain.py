"""Explains how devices exchange gradients, and when."""

import ml_collections

from lbsgd.system.text import decimal, pluralize
from lbsgd.workers.collectives import cost
from lbsgd.workers.collectives.allreduce import resolve_grid
from lbsgd.workers.compiler import compiler_options
from lbsgd.workers.topology import Topology


def explain_allreduce(c: ml_collections.ConfigDict, topology: Topology) -> str:
    """Says which all-reduce averages the gradients, and what it costs.

    Args:
      c: the config's `allreduce`.
    """
    devices = topology.devices
    text = f"all-reduce: {c.algorithm} over {pluralize(devices, 'device')}"
    text += f", buckets of {decimal(topology.bucket_mib(c))} MiB"
    if c.dtype != "own":
        scaled = " times a power of two" if c.dtype == "float16" else ""
        text += f", sent in {c.dtype}{scaled} and summed in float32"
    if c.algorithm == "psum" or devices == 1:
        return text
    grid = resolve_grid(c.algorithm, devices, topology.grid(c))
    if c.algorithm in ("torus_2d", "hierarchical"):
        text += ", {:,}x{:,}".format(*grid)
    steps = cost.steps(c.algorithm, devices, grid)
    load = float(cost.load(c.algorithm, devices, grid))
    return f"{text}; {pluralize(steps, 'step')}, a device sends {decimal(load)} times the gradient"


def explain_compiler(c: ml_collections.ConfigDict, topology: Topology) -> list[str]:
    """Says by which options the compiler is to overlap the all-reduce with the backward pass.

    Args:
      c: the config's `allreduce`.
    """
    options = compiler_options(c, topology)
    # Numbers as one would set them, in `XLA_FLAGS`, and not for reading.
    told = (f"{name}={str(value).lower()}" for name, value in options.items())
    kind = "" if topology.asked else f", if the devices are {topology.platform.upper()}s"
    return [f"compiler options: {', '.join(told)}{kind}"] if options else []
