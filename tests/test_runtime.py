"""Devices, memory and processes."""

import os
import pathlib

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


def test_several_processes_use_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="with several processes all 8 devices are used; set"):
        runtime.count_devices(4)


def test_the_record_of_the_machine_names_versions_and_hardware():
    record = runtime.describe_machine()
    assert record["devices"] == 8
    assert record["backend"] == "cpu"
    assert record["packages"]["jax"] == jax.__version__
