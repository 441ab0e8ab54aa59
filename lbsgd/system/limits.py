"""Limits of this process: cores, memory, open files.

A container or a cluster's scheduler may allow less than the machine has: a control group (cgroup,
version 1 or 2) has a memory limit and a quota of processor time.
"""

import contextlib
import math
import os
import pathlib
import resource
from collections.abc import Iterator

ROOT = pathlib.Path("/")


def num_cores(root: pathlib.Path = ROOT) -> int:
    """Returns how many cores this process may use, at least 1; a quota of 2.5 cores counts as 3.

    Args:
      root: the folder that holds proc/ and sys/.
    """
    if hasattr(os, "sched_getaffinity"):  # not on every system
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(root))))


def memory_limit(root: pathlib.Path = ROOT) -> int:
    """Returns the bytes of memory of this machine, or fewer if a control group sets a limit.

    Args:
      root: the folder that holds proc/ and sys/.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [machine]
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            found += map(int, _numbers(folder / name))
    return min(found)


def _quota(root: pathlib.Path) -> float:
    """Returns the quota of processor time in cores; infinity if there is none."""
    quotas = [math.inf]
    for folder in _groups(root, "cpu"):
        numbers = _numbers(folder / "cpu.max")  # quota and period in microseconds
        if not numbers:
            numbers = [*_numbers(folder / "cpu.cfs_quota_us")]
            numbers += _numbers(folder / "cpu.cfs_period_us")
        if len(numbers) == 2 and min(numbers) > 0:
            quotas.append(numbers[0] / numbers[1])
    return min(quotas)


def _groups(root: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
    """Yields the folders of this process's control group and of the groups around it.

    A container may see its own group as the root, so the folder of the full path may not exist.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            mount = root / "sys/fs/cgroup"
            if controllers:  # version 1 has a tree for each controller
                if controller not in controllers.split(","):
                    continue
                mount = mount / controller
            inside = pathlib.PurePosixPath(path.lstrip("/"))
            yield from (mount / part for part in (inside, *inside.parents))


def _numbers(path: pathlib.Path) -> list[float]:
    """Reads the numbers in a file; empty if it cannot be read or says "max", which is no limit."""
    try:
        words = path.read_text().split()
        return [] if "max" in words else [float(word) for word in words]
    except (OSError, ValueError):
        return []


def allow_open_files(more: int) -> None:
    """Raises this process's limit of open files by `more`, as far as the system allows.

    A large data set has a thousand shards, which is about the usual limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + more
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
