"""Limits of control groups, in files as Linux has them."""

import os
import pathlib

import pytest

from lbsgd.system.limits import memory_limit, num_cores

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
GIB = 2**30

# What /proc/self/cgroup says, the files of groups, and the limit: bytes, or cores.
MEMORY = {
    "no groups": ("", {}, MACHINE),
    "version 2, none": ("0::/a/b\n", {"a/b/memory.max": "max\n"}, MACHINE),
    "version 2": ("0::/a/b\n", {"a/b/memory.max": f"{GIB}\n"}, GIB),
    "of the group around": ("0::/a/b\n", {"a/memory.max": f"{GIB}\n"}, GIB),
    "seen from inside a container": ("0::/../x\n", {"memory.max": f"{GIB}\n"}, GIB),
    "version 1": (
        "4:cpu,cpuacct:/a\n3:memory:/a\n",
        {"memory/a/memory.limit_in_bytes": f"{GIB}\n"},
        GIB,
    ),
    "version 1, none": (
        "3:memory:/a\n",
        {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"},
        MACHINE,
    ),
    "more than the machine has": ("0::/\n", {"memory.max": f"{10 * MACHINE}\n"}, MACHINE),
}
QUOTA = {
    "no groups": ("", {}, CORES),
    "none": ("0::/a\n", {"a/cpu.max": "max 100000\n"}, CORES),
    "one core": ("0::/a\n", {"a/cpu.max": "100000 100000\n"}, 1),
    "less than a core": ("0::/a\n", {"a/cpu.max": "20000 100000\n"}, 1),
    "of the group around": ("0::/a/b\n", {"a/cpu.max": "50000 100000\n"}, 1),
    "version 1": (
        "4:cpu,cpuacct:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        1,
    ),
    "version 1, none": (
        "4:cpu:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        CORES,
    ),
    "more than there are": ("0::/a\n", {"a/cpu.max": "99000000 100000\n"}, CORES),
}


def make_root(folder: pathlib.Path, groups: str, files: dict[str, str]) -> pathlib.Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("case", MEMORY)
def test_memory_is_what_the_group_allows(tmp_path, case):
    groups, files, limit = MEMORY[case]
    assert memory_limit(make_root(tmp_path, groups, files)) == limit


@pytest.mark.parametrize("case", QUOTA)
def test_cores_are_what_the_quota_pays(tmp_path, case):
    groups, files, limit = QUOTA[case]
    assert num_cores(make_root(tmp_path, groups, files)) == limit


def test_where_nothing_can_be_read_the_machine_counts(tmp_path):
    assert (memory_limit(tmp_path), num_cores(tmp_path)) == (MACHINE, CORES)
