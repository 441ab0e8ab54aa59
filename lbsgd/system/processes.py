"""The processes of a run: who speaks, what all must have alike, and how one leaves the others."""

import json
import os
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lbsgd.system.errors import EXIT_USER, ConfigError
from lbsgd.system.text import counted, differences

Result = TypeVar("Result")

# Of a SHA-256, and "-dirty".
LONGEST_COMMIT = 72
# What a process that finds a mistake gives the others to find it too.
LEAVE_SECONDS = 5.0


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
    differ = differences(there, mine)
    if not np.any(multihost_utils.process_allgather(np.array(bool(differ)))):
        return
    if differ:
        raise ConfigError(
            f"process {jax.process_index()} differs from process 0 in {differ}; start "
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


def describe_process() -> str:
    """Which process this is, for its log."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}: pid {os.getpid()} on "
        f"{platform.node()}, {jax.local_device_count()} of {counted(jax.device_count(), 'device')} "
        f"({jax.default_backend()})"
    )
