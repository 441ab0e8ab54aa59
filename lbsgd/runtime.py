"""The machine: devices, precision and processes, once they have started."""

import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from lbsgd.errors import EXIT_USER, ConfigError
from lbsgd.limits import memory
from lbsgd.text import counted

Result = TypeVar("Result")

# Updates that may wait on the devices. More would not be faster, and many more can deadlock
# collectives between more CPU devices than cores.
IN_FLIGHT = 4

# Of a SHA-256, and "-dirty".
LONGEST_COMMIT = 72
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


def json_from_process_0(value: Any) -> Any:
    """What JSON makes of the value of process 0, in every process."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(from_process_0(np.array(text.size)))
    return json.loads(from_process_0(np.resize(text, size)).tobytes())


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
    there = json_from_process_0(mine)
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


def different_commits(commit: str | None) -> str:
    """A line that says which processes run which commit of the code; "" where all run the same.

    Args:
      commit: of this process.
    """
    if jax.process_count() == 1:
        return ""
    text = np.frombuffer(
        (commit or "unknown").encode().ljust(LONGEST_COMMIT)[:LONGEST_COMMIT], np.uint8
    )
    gathered = multihost_utils.process_allgather(text)
    return commits_line([row.tobytes().decode().strip() for row in gathered])


def commits_line(commits: Sequence[str]) -> str:
    """See `different_commits`.

    Args:
      commits: by process.
    """
    whose = {commit: [i for i, c in enumerate(commits) if c == commit] for commit in commits}
    if len(whose) == 1:
        return ""
    parts = [f"{commit} (process {', '.join(map(str, i))})" for commit, i in whose.items()]
    return f"the processes run different commits of the code: {'; '.join(parts)}"


def is_of_a_collective(error: Exception) -> bool:
    """Whether an error may be of other processes: one of them fails, and the collectives of all."""
    # In this order: where there are no devices JAX cannot count its processes either.
    if not isinstance(error, jax.errors.JaxRuntimeError) or not jax.distributed.is_initialized():
        return False
    return jax.process_count() > 1


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
    allows: the other half is for Python, the images and other programs. Those of all processes
    count, which may be on one machine.

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


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had not the memory that was asked for."""
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


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
        if not is_out_of_memory(error):
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
        "git_commit": git_commit(os.path.dirname(os.path.abspath(__file__))),
    }


def describe_process() -> str:
    """Which process this is, for its log."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}: pid {os.getpid()} on "
        f"{platform.node()}, {jax.local_device_count()} of {counted(jax.device_count(), 'device')} "
        f"({jax.default_backend()})"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit(folder: str | pathlib.Path) -> str | None:
    """The commit that a Python package in `folder` is of, "-dirty" behind it where it was changed.

    None where no git tracks the package: a repository may lie around the environment that it is
    installed in.
    """
    if not _git(folder, "ls-files", "--error-unmatch", "__init__.py"):
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: str | pathlib.Path, *command: str) -> str | None:
    """What git says there; None where it cannot."""
    # A hook of git has its own repository in GIT_DIR.
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *command],
            env={**own, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
