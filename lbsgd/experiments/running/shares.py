"""Shares of this machine: each worker process has its own cores, or its own GPUs."""

import itertools
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from lbsgd.launch.local import find_gpus, split_devices
from lbsgd.system.errors import ConfigError
from lbsgd.system.limits import num_cores
from lbsgd.system.text import pluralize


class Share(NamedTuple):
    """Holds what of the machine is a process's own.

    Attributes:
      cores: that it keeps to; () for all.
      environment: variables to be added.
    """

    cores: tuple[int, ...]
    environment: Mapping[str, str]


def shares(processes: int, environment: Mapping[str, str]) -> list[Share]:
    """Splits the cores of this machine among processes, and its GPUs if there are any.

    Args:
      environment: of this process.

    Raises:
      ConfigError: there are fewer GPUs than processes.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = split_cores(sorted(affinity(0)) if affinity else [], processes)
    # A quota of processor time is for all of them together.
    threads = max(1, math.ceil(num_cores() / processes))
    return [
        Share(own, {"NPROC": str(min(len(own) or threads, threads)), **devices})
        for own, devices in zip(cores, _devices(processes, environment))
    ]


def split_cores(cores: list[int], processes: int) -> list[tuple[int, ...]]:
    """Splits cores into neighbours of about equal number; several processes share one in need."""
    if processes == 1 or not cores:
        return [()] * processes
    if processes > len(cores):
        return [(cores[i % len(cores)],) for i in range(processes)]
    bounds = [i * len(cores) // processes for i in range(processes + 1)]
    return [tuple(cores[a:b]) for a, b in itertools.pairwise(bounds)]


def _devices(processes: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    gpus = [] if environment.get("JAX_PLATFORMS") == "cpu" else find_gpus(environment)
    if not gpus:
        return [{}] * processes
    if processes > len(gpus):
        raise ConfigError(
            f"--parallel {processes}, but there {'is' if len(gpus) == 1 else 'are'} only "
            f"{pluralize(len(gpus), 'GPU')} (CUDA_VISIBLE_DEVICES, nvidia-smi -L), and each "
            "process needs one; start fewer, train several seeds in each with --seeds_at_once, or "
            "set JAX_PLATFORMS=cpu"
        )
    return split_devices("auto", processes, len(gpus) // processes, gpus)
