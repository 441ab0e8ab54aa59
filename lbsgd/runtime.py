"""The machine: devices, precision, processes and signals."""

import os
import platform
import signal
import subprocess
from importlib import metadata
from types import FrameType
from typing import Any

import jax
import ml_collections
from jax.experimental import multihost_utils

from lbsgd.errors import ConfigError

# Updates that may wait on the devices. More would not be faster, and many more can deadlock
# collectives between more CPU devices than cores.
IN_FLIGHT = 4

REPORTED_PACKAGES = (
    "lbsgd",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
)


def start_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins this process to the others of the run (`jax.distributed`), if there are any.

    Raises:
      ConfigError: numbers that name no process of a run.
    """
    if num_processes == 1:
        return
    if num_processes < 1:
        raise ConfigError(f"--num_processes must be at least 1, not {num_processes}")
    if not coordinator or not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--num_processes={num_processes} needs --coordinator=host:port and a --process_id "
            f"from 0 to {num_processes - 1}, not {process_id}"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def set_precision(dtype: str) -> None:
    """Turns 64-bit types on where the config asks for float64; call it before making arrays."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)


def count_devices(asked: int) -> int:
    """The number of devices to use, `asked` or all for 0.

    Raises:
      ConfigError: there are fewer, or a part of several processes' devices was asked for.
    """
    there = jax.device_count()
    if asked > there:
        raise ConfigError(
            f"devices={asked}, but there {'is' if there == 1 else 'are'} only {there} "
            f"({jax.default_backend()}); set devices={there}, or 0 for all"
        )
    if asked not in (0, there) and jax.process_count() > 1:
        raise ConfigError(f"with several processes all {there} devices are used; set devices=0")
    return asked or there


def device_memory(config: ml_collections.ConfigDict) -> int:
    """Bytes of memory that one device has for the step.

    Raises:
      ConfigError: neither the config nor the device tells.
    """
    if config.device_memory_gib:
        return int(config.device_memory_gib * 2**30)
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        raise ConfigError(
            f"accumulation_steps=0 needs the memory of a device, which {jax.default_backend()} "
            "does not tell; set device_memory_gib, or accumulation_steps to a number"
        )
    return int(stats["bytes_limit"])


def describe_machine() -> dict[str, Any]:
    """Versions, hardware and the commit of the code, for the record of a run."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in REPORTED_PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    folder = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class StopSignal:
    """While entered, a first SIGINT or SIGTERM only asks the run to stop; a second ends it at once.

    Several processes agree on the update to stop after, through JAX's own handler of SIGTERM, which
    no Python handler may replace; their SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[int, Any] = {}

    def reached(self, update: int) -> bool:
        """Whether to stop after this update; every process asks after every update."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(update)
        return self._requested

    def __enter__(self) -> "StopSignal":
        caught = [signal.SIGINT]
        if jax.process_count() == 1:
            caught.append(signal.SIGTERM)
        for number in caught:
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._requested = True
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"stopping after this update; once more ends at once\n")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
