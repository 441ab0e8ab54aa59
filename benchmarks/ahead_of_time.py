"""Updates compiled for TPUs that are not here, by jax[tpu], and what its compiler counts of them.

It is the compiler of the TPUs themselves, so what it decides is what runs there; how long that
takes it does not say. On a machine without a TPU it is to be told so:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/...
"""

import sys
from importlib import metadata

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lbsgd.run.config import resolve
from lbsgd.run.layout import sharded
from lbsgd.run.plan import make_plan
from lbsgd.system.devices import precision
from lbsgd.system.machine import describe_machine
from lbsgd.workers.compiler import compile_with, compiler_options
from lbsgd.workers.placement import DEVICE_AXES
from lbsgd.workers.topology import Topology


def devices_of(topology: str) -> list:
    """Describes the chips of a topology, such as v5e:2x2."""
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def plan_for(config, facts, devices: int):
    """Plans a run on so many chips."""
    return make_plan(resolve(config), facts, Topology(devices, platform="tpu"))


def compile_update(plan, devices: list, options: dict | None = None) -> jax.stages.Compiled:
    """Compiles the update of a plan as its run would, or with other options of the compiler."""
    placement = plan.placement
    shape = np.array(devices[: placement.devices]).reshape(placement.mesh_shape)
    mesh = Mesh(shape, DEVICE_AXES, axis_types=(AxisType.Auto,) * 2)
    whole, by_slot = (NamedSharding(mesh, s) for s in (PartitionSpec(), placement.batch_spec))
    out = (plan.state_shardings(placement, mesh), whole)
    step = plan.train_step(placement)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=out, keep_unused=True)
    if options is None:
        options = compiler_options(plan.config.allreduce, plan.topology)
    with precision(plan.config.dtype):
        lowered = jitted.lower(
            sharded(plan.shapes_on_devices(placement), out[0]),
            sharded(plan.batch_shapes(placement), by_slot),
            sharded(plan.number_shapes(), whole),
        )
        return compile_with(lowered, options, lambda line: print(line, file=sys.stderr))


def counted(compiled: jax.stages.Compiled) -> dict:
    """Returns what the compiler counts of an update on one chip."""
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }


def describe_compiler() -> dict:
    """Versions and commit; of the machine nothing, for the compiler counts the same on any."""
    machine = describe_machine()
    return {
        "jax": machine["packages"]["jax"],
        "libtpu": metadata.version("libtpu"),
        "commit": machine["git_commit"],
    }
