"""Tells XLA's compiler to overlap the all-reduce of gradients with the backward pass.

XLA joins small all-reduces into larger ones, each of which waits until all of its gradients are
there: their size decides when the first can start. It can then run beside what is still computed.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from lbsgd.workers.topology import Topology

# Of the compiler, by name.
Options = dict[str, Any]


def compiler_options(allreduce: ml_collections.ConfigDict, topology: Topology) -> Options:
    """Chooses the options that the update is compiled with; none on CPUs and for one device.

    They decide when gradients are sent and in how many messages, and not what is computed. What the
    environment gives a value for (`XLA_FLAGS`, `LIBTPU_INIT_ARGS`) is left to it.

    Args:
      allreduce: the config's.
    """
    bucket_bytes = int(topology.bucket_mib(allreduce) * 2**20)
    of_platform: dict[str, Options] = {
        "tpu": {
            "xla_jf_crs_combiner_threshold_in_bytes": bucket_bytes,
            "xla_enable_async_all_reduce": True,
            "xla_tpu_enable_async_collective_fusion": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
        },
        "gpu": {
            "xla_gpu_all_reduce_combine_threshold_bytes": bucket_bytes,
            "xla_gpu_enable_latency_hiding_scheduler": True,
        },
    }
    options = of_platform.get(topology.platform, {}) if topology.devices > 1 else {}
    given = _given(os.environ)
    return {name: value for name, value in options.items() if name not in given}


def _given(environment: Mapping[str, str]) -> set[str]:
    """Finds the names of the flags that the environment has for XLA."""
    flags = " ".join(environment.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
    return set(re.findall(r"(?<!\S)--(?:no)?(xla_\w+)", flags))


def compile_with(
    lowered: jax.stages.Lowered, options: Options, say: Callable[[str], None]
) -> jax.stages.Compiled:
    """Compiles a program with those of the options that the compiler takes.

    Options come and go with XLA's versions, and none is worth a run that does not start.

    Args:
      say: takes a line for each option that is left out.
    """
    options = dict(options)
    while True:
        try:
            return lowered.compile(options or None)
        except jax.errors.JaxRuntimeError as error:
            refused = _refused(str(error), options)
            if refused is None:
                raise
            say(f"this compiler does not take {refused}={options.pop(refused)}; left out")


def _refused(message: str, options: Options) -> str | None:
    """Finds the option that an error of the compiler is about, if it is about one."""
    if "INVALID_ARGUMENT" not in message:
        return None
    return next((name for name in options if re.search(rf"\b{name}\b", message)), None)
