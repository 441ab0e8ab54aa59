"""Devices, memory and signals."""

import os
import signal
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
    config.device_memory_gib = 0.0
    with pytest.raises(ConfigError, match="set device_memory_gib"):
        runtime.device_memory(config)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with runtime.StopSignal() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), number)
        assert stop.reached(2)
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_at_once():
    script = (
        "import os, signal\n"
        "from lbsgd import runtime\n"
        "with runtime.StopSignal():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("coordinator", "processes", "process"), [("", 2, 0), ("host:1", 2, 2), ("host:1", 2, -1)]
)
def test_processes_that_cannot_be_are_an_error(coordinator, processes, process):
    with pytest.raises(ConfigError, match="needs --coordinator"):
        runtime.start_processes(coordinator, processes, process)


def test_the_record_of_the_machine_names_versions_and_hardware():
    record = runtime.describe_machine()
    assert record["devices"] == 8
    assert record["backend"] == "cpu"
    assert record["packages"]["jax"] == jax.__version__
