"""The machine: devices, precision and processes."""

import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from lbsgd.errors import EXIT_USER, ConfigError
from lbsgd.limits import memory

Result = TypeVar("Result")

# Updates that may wait on the devices. More would not be faster, and many more can deadlock
# collectives between more CPU devices than cores.
IN_FLIGHT = 4

# A process that waits longer for the others to start says so.
WAITING_SECONDS = 10.0
# What a process that finds a mistake gives the others to find it too.
LEAVE_SECONDS = 5.0

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


def start_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    limits: ml_collections.ConfigDict,
) -> None:
    """Joins this process to the others of the run (`jax.distributed`), if there are any.

    Without any of the three, JAX looks for SLURM, Open MPI, Kubernetes and Cloud TPU.

    Args:
      coordinator: host:port of process 0, who listens there; on a loopback address only there.
      limits: the config's `runtime`.

    Raises:
      ConfigError: what is given names no process of a run, or the others did not come.
    """
    given = (coordinator, num_processes, process_id)
    alone = all(x is None for x in given) and _is_single_task()
    if num_processes == 1 or alone:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    how: dict[str, Any] = {
        "heartbeat_timeout_seconds": limits.heartbeat_seconds,
        "initialization_timeout": limits.start_seconds,
    }
    if any(x is not None for x in given):
        how |= _check_process(coordinator, num_processes, process_id)
    who = f"process {process_id} of {num_processes} at {coordinator}" if coordinator else "it"
    told = threading.Timer(
        min(WAITING_SECONDS, limits.start_seconds / 2),
        lambda: print(
            f"lbsgd: {who} waits for the other processes; ends after {limits.start_seconds} s "
            "without them",
            file=sys.stderr,
        ),
    )
    told.daemon = True
    told.start()
    try:
        jax.distributed.initialize(**how)
    except jax.errors.JaxRuntimeError:
        raise  # of the connection, which may be better next time
    except (RuntimeError, ValueError) as error:  # of JAX's own detection
        reason = str(error).strip().splitlines()[0]
        if "coordinator_address should be defined" not in reason:  # there is no cluster
            raise ConfigError(f"the processes did not find each other: {reason}") from error
    finally:
        told.cancel()


def _is_single_task() -> bool:
    """Whether a cluster manager started this process alone."""
    return "1" in (os.environ.get("SLURM_NTASKS"), os.environ.get("OMPI_COMM_WORLD_SIZE"))


def _check_process(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any]:
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            "--coordinator=host:port, --num_processes and --process_id belong together; give all "
            "three"
        )
    if num_processes < 1:
        raise ConfigError(f"--num_processes must be at least 1, not {num_processes}")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id must be from 0 to {num_processes - 1} of --num_processes="
            f"{num_processes}, not {process_id}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator must be host:port of process 0, not {coordinator!r}")
    how = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }
    if host in ("localhost", "[::1]") or host.startswith("127."):
        how["coordinator_bind_address"] = coordinator  # JAX's own choice is every interface
    return how


def is_first() -> bool:
    """Whether this is process 0, who speaks."""
    return jax.process_index() == 0


def from_process_0(tree: Any) -> Any:
    """The numpy arrays of process 0 in every process, bit by bit.

    Args:
      tree: arrays; of the others, their shapes and types alone count.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    # As bytes, for a sum of zeros and x is not always x: -0.0 + 0.0 = 0.0.
    flat = np.concatenate([np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in leaves])
    flat = np.asarray(multihost_utils.broadcast_one_to_all(flat))
    ends = np.cumsum([x.nbytes for x in leaves])
    parts = np.split(flat, ends[:-1])
    leaves = [p.view(x.dtype).reshape(x.shape) for p, x in zip(parts, leaves)]
    return jax.tree.unflatten(structure, leaves)


def in_process_0(action: Callable[[], Result]) -> Result | None:
    """What `action` returns, in process 0; the others wait for it and get None.

    Raises:
      ConfigError: it found a mistake; in all processes.
    """
    result, mistake = None, None
    if is_first():
        try:
            result = action()
        except ConfigError as error:
            mistake = error
    if from_process_0(np.array(mistake is not None)):
        raise mistake or ConfigError("process 0 found a mistake, and says which")
    return result


def check_alike(what: dict[str, Any]) -> None:
    """Whether all processes have the same, for else they would train one network in two ways.

    Raises:
      ConfigError: they have not; in all processes.
    """
    mine = {key: json.dumps(value, sort_keys=True) for key, value in what.items()}
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    size = int(from_process_0(np.array(text.size)))
    there = json.loads(from_process_0(np.resize(text, size)).tobytes())
    keys = sorted(mine.keys() | there.keys())
    differ = [
        f"{key} ({there.get(key)} there, {mine.get(key)} here)"
        for key in keys
        if mine.get(key) != there.get(key)
    ]
    if not np.any(multihost_utils.process_allgather(np.array(bool(differ)))):
        return
    if differ:
        raise ConfigError(
            f"process {jax.process_index()} differs from process 0 in {', '.join(differ)}; start "
            "all with the same config, data and versions"
        )
    raise ConfigError("a process differs from process 0, and says in what")


def is_of_a_collective(error: Exception) -> bool:
    """Whether an error may be of other processes: one of them fails, and the collectives of all."""
    return jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError)


def leave(code: int) -> None:
    """Ends this process of several after a failure, though the others may not be at their end.

    JAX would wait for them. For a mistake that all of them find they get a few seconds.
    """
    if not jax.distributed.is_initialized():
        return
    if code == EXIT_USER:
        waits = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        waits.start()
        waits.join(LEAVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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

    Devices that are the CPU share half of the machine's memory, or of what its control group
    allows: the other half is for Python, the images and other programs.

    Raises:
      ConfigError: neither the config nor the device tells.
    """
    if config.device_memory_gib:
        return int(config.device_memory_gib * 2**30)
    if jax.default_backend() == "cpu":
        return memory() // 2 // jax.device_count()
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        raise ConfigError(
            f"accumulation_steps=0 needs the memory of a device, which {jax.default_backend()} "
            "does not tell; set device_memory_gib, or accumulation_steps to a number"
        )
    return int(stats["bytes_limit"])


@contextlib.contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Says what to do where a device or the machine runs out of memory within.

    Args:
      what: is being done, as the beginning of a sentence.
      remedy: as its end.

    Raises:
      ConfigError: it has run out.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = re.search(r"allocating (\d+) bytes", str(error))
        size = f" ({int(asked[1]) / 2**30:.2f} GiB were asked for at once)" if asked else ""
        raise ConfigError(f"{what} needs more memory than there is{size}; {remedy}") from error


def cache_folder() -> pathlib.Path | None:
    """Where choices are remembered from run to run; None where the user has no home.

    It need not be there, and it may be that it cannot be written.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return pathlib.Path(folder) / "lbsgd" if os.path.isabs(folder) else None


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


def describe_process() -> str:
    """Which process this is, for its log."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}: pid {os.getpid()} on "
        f"{platform.node()}, {jax.local_device_count()} of {jax.device_count()} devices "
        f"({jax.default_backend()})"
    )


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
