"""The processes of a run: sharing values, agreeing on settings, and failing alone or together."""

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
from lbsgd.system.text import differences, pluralize

Result = TypeVar("Result")

# A SHA-256 in hexadecimal and "-dirty" fit.
LONGEST_COMMIT = 72
# How long a process that has found a mistake waits for the others to find it too.
LEAVE_SECONDS = 5.0
# Of what is gathered or broadcast, at a time: no device need have room for the whole.
PART_BYTES = 2**26


def is_first() -> bool:
    """Returns whether this is process 0, the one that prints and writes files."""
    return jax.process_index() == 0


def from_process_0(tree: Any) -> Any:
    """Broadcasts the numpy arrays of process 0 to every process, bit by bit.

    Args:
      tree: arrays; in the other processes only their shapes and types matter.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    mine = is_first()
    found = [np.asarray(x, order="C") if mine else np.empty(x.shape, x.dtype) for x in leaves]
    # As bytes, because JAX broadcasts by summing with zeros, and -0.0 + 0.0 is 0.0.
    rest = [x.reshape(-1).view(np.uint8) for x in found]
    while rest:
        part, rest = _first_part(rest)
        arrived = np.asarray(multihost_utils.broadcast_one_to_all(np.concatenate(part)))
        if not mine:
            for x, values in zip(part, np.split(arrived, np.cumsum([x.size for x in part[:-1]]))):
                x[:] = values
    return jax.tree.unflatten(structure, found)


def _first_part(rest: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Splits arrays of bytes into the first `PART_BYTES` of them, and what comes behind."""
    part, room = [], PART_BYTES
    for i, x in enumerate(rest):
        part.append(x[:room])
        if x.size > room:
            return part, [x[room:], *rest[i + 1 :]]
        room -= x.size
    return part, []


def onto_devices(tree: Any, like: Any) -> Any:
    """Puts the numpy arrays of process 0 on the devices of all processes.

    Args:
      tree: arrays; in the other processes only their shapes and types matter.
      like: a tree of the same structure, whose leaves have shapes and shardings.
    """
    return jax.tree.map(
        lambda x, s: jax.make_array_from_process_local_data(s.sharding, x, s.shape),
        from_process_0(tree),
        like,
    )


def gathered(x: jax.Array, replicated: jax.sharding.Sharding) -> np.ndarray:
    """Brings an array that lies on the devices of all processes to the host of process 0.

    All processes call it; the others get zeros.

    Args:
      replicated: the sharding of an array that is whole on each of these devices.
    """
    nothing = np.zeros(x.shape, x.dtype)
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x) if is_first() else nothing
    # Part by part, for no device need have room for the whole.
    axis = max(range(x.ndim), key=lambda i: x.shape[i] // x.sharding.shard_shape(x.shape)[i])
    count = x.shape[axis]
    rows = min(count, max(1, PART_BYTES * count // max(x.nbytes, 1)))
    take = jax.jit(
        lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, rows, axis),
        out_shardings=replicated,
    )
    for start in range(0, count, rows):
        # The last part is as long as the others, and begins earlier.
        first = min(start, count - rows)
        part = take(x, np.int32(first)).addressable_data(0)
        if is_first():
            nothing[(slice(None),) * axis + (slice(first, first + rows),)] = part
    return nothing


def json_from_process_0(value: Any) -> Any:
    """Broadcasts the value of process 0 to every process, as JSON."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(from_process_0(np.array(text.size)))
    return json.loads(from_process_0(np.resize(text, size)).tobytes())


def in_process_0(action: Callable[[], Result]) -> Result | None:
    """Calls `action` in process 0 and returns its result; the others wait for it and get None.

    Raises:
      ConfigError: `action` raised one; it is raised in all processes.
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


def check_processes_agree(what: dict[str, Any]) -> None:
    """Checks that all processes have the same values; else they would train different networks.

    Args:
      what: JSON values by name.

    Raises:
      ConfigError: some differ; raised in all processes.
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
    """Describes which processes run which commit of the code; "" if all run the same one.

    Args:
      commit: that of this process.
    """
    if jax.process_count() == 1:
        return ""
    text = np.frombuffer(
        (commit or "unknown").encode().ljust(LONGEST_COMMIT)[:LONGEST_COMMIT], np.uint8
    )
    gathered = multihost_utils.process_allgather(text)
    return commits_line([row.tobytes().decode().strip() for row in gathered])


def commits_line(commits: Sequence[str]) -> str:
    """Formats the commits of all processes for `different_commits`.

    Args:
      commits: one for each process.
    """
    whose = {commit: [i for i, c in enumerate(commits) if c == commit] for commit in commits}
    if len(whose) == 1:
        return ""
    parts = [f"{commit} (process {', '.join(map(str, i))})" for commit, i in whose.items()]
    return f"the processes run different commits of the code: {'; '.join(parts)}"


def is_collective_error(error: Exception) -> bool:
    """Returns whether an error may come from another process, whose failure fails collectives."""
    # In this order: if there are no devices, JAX cannot count its processes either.
    if not isinstance(error, jax.errors.JaxRuntimeError) or not jax.distributed.is_initialized():
        return False
    return jax.process_count() > 1


def exit_distributed(code: int) -> None:
    """Exits at once if this is one of several processes; does nothing if it is the only one.

    A normal exit would wait for the other processes, which may still be running. After a mistake
    of the user, which all of them find, they get a few seconds to exit too.
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
    """Describes this process in one line, for its log."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}: pid {os.getpid()} on "
        f"{platform.node()}, {jax.local_device_count()} of "
        f"{pluralize(jax.device_count(), 'device')} ({jax.default_backend()})"
    )
