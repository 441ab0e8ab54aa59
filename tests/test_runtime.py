"""Devices, memory and processes."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from lbsgd import runtime
from lbsgd.config import default_config
from lbsgd.errors import ConfigError


def test_devices_are_those_asked_for_or_all():
    assert runtime.count_devices(0) == 8
    assert runtime.count_devices(5) == 5
    with pytest.raises(ConfigError, match="devices=9, but there are only 8"):
        runtime.count_devices(9)


def test_memory_of_a_device_is_asked_or_given():
    config = default_config()
    config.device_memory_gib = 1.5
    assert runtime.device_memory(config) == 3 * 2**29


def test_devices_that_are_the_cpu_share_half_of_its_memory():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < runtime.device_memory(default_config()) <= machine // 2 // 8


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 3221225472 bytes."


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            jax.errors.JaxRuntimeError(OUT_OF_MEMORY),
            r"is \(3.00 GiB were asked for at once\); less",
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room"), "is; less"),
        (MemoryError("Unable to allocate 3 GiB"), "is; less"),
    ],
)
def test_memory_that_has_run_out_is_a_line(error, says):
    with (
        pytest.raises(ConfigError, match="^it needs more memory than there " + says),
        runtime.enough_memory("it", "less"),
    ):
        raise error


def test_other_errors_are_left_as_they_are():
    error = jax.errors.JaxRuntimeError("INTERNAL: connection reset")
    with pytest.raises(jax.errors.JaxRuntimeError) as raised, runtime.enough_memory("it", "less"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/lbsgd"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/c"}, "/c/lbsgd"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "c"}, "/home/a/.cache/lbsgd"),  # says the standard
        ({"HOME": "a"}, None),
        ({}, None),
        ({"XDG_CACHE_HOME": "/c"}, "/c/lbsgd"),
    ],
)
def test_the_cache_is_where_the_user_says_or_nowhere(environment, folder, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getuid", lambda: 2**31)  # a user without an entry in /etc/passwd
    assert runtime.cache_folder() == (folder and pathlib.Path(folder))


LIMITS = default_config().runtime


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((None, 2, 0), "belong together; give all three"),
        (("host:1", None, 0), "belong together; give all three"),
        (("host:1", 2, None), "belong together; give all three"),
        (("host:1", 2, 2), "--process_id must be from 0 to 1 of --num_processes=2, not 2"),
        (("host:1", 2, -1), "--process_id must be from 0 to 1 of --num_processes=2, not -1"),
        (("host", 2, 0), "--coordinator must be host:port of process 0, not 'host'"),
        (("host:one", 2, 0), "--coordinator must be host:port of process 0, not 'host:one'"),
        ((":1", 2, 0), "--coordinator must be host:port of process 0, not ':1'"),
    ],
)
def test_processes_that_cannot_be_are_an_error(flags, says):
    with pytest.raises(ConfigError, match=says):
        runtime.start_processes(*flags, LIMITS)


def test_a_run_has_at_least_one_process():
    with pytest.raises(ConfigError, match="--num_processes must be at least 1, not -1"):
        runtime.start_processes("host:1", -1, 0, LIMITS)


@pytest.mark.parametrize(
    ("coordinator", "bound"),
    [("localhost:70", True), ("127.0.0.1:70", True), ("[::1]:70", True), ("10.0.0.1:70", False)],
)
def test_a_coordinator_at_a_loopback_address_listens_there_alone(coordinator, bound):
    how = runtime._check_process(coordinator, 2, 0)
    assert how.get("coordinator_bind_address") == (coordinator if bound else None)


@pytest.mark.parametrize("task", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_single_task_of_a_cluster_is_one_process(task, monkeypatch):
    monkeypatch.setenv(task, "1")
    runtime.start_processes(None, None, None, LIMITS)
    assert not jax.distributed.is_initialized()


def test_a_cluster_that_does_not_tell_is_an_error():
    script = (
        "from lbsgd import runtime\n"
        "from lbsgd.config import default_config\n"
        "runtime.start_processes(None, None, None, default_config().runtime)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMPI_MCA_orte_hnp_uri": "4096.0;nowhere"},
        capture_output=True,
        text=True,
    )
    assert "ConfigError: the processes did not find each other: Could not parse" in done.stderr


def test_several_processes_use_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="with several processes all 8 devices are used; set"):
        runtime.count_devices(4)


def test_without_a_cluster_there_is_one_process():
    script = (
        "import jax\n"
        "from lbsgd import runtime\n"
        "from lbsgd.config import default_config\n"
        "runtime.start_processes(None, None, None, default_config().runtime)\n"
        "assert not jax.distributed.is_initialized() and jax.process_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_record_of_the_machine_names_versions_and_hardware():
    record = runtime.describe_machine()
    assert record["devices"] == 8
    assert record["backend"] == "cpu"
    assert record["packages"]["jax"] == jax.__version__
