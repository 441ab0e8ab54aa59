"""Signals: the first asks the run to stop, wherever the main thread is."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hanging import HANG_SECONDS

from lbsgd.system.preemption import StopSignal

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def until(condition, seconds: float = HANG_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_first_signal_asks_and_the_handlers_come_back(number, capfd):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.should_stop()
        os.kill(os.getpid(), number)
        until(stop.should_stop)
        assert f"{number.name}: saves a checkpoint as soon as it can" in capfd.readouterr().err
    assert signal.getsignal(number) == before
    until(lambda: "lbsgd-signals" not in {t.name for t in threading.enumerate()})


def run(script: str) -> subprocess.CompletedProcess:
    head = "import os, signal, time\nfrom lbsgd.system.preemption import StopSignal\n"
    return subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, timeout=HANG_SECONDS
    )


@pytest.mark.parametrize("number", NUMBERS)
def test_before_there_is_anything_to_save_it_ends_at_once(number):
    done = run(f"with StopSignal():\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(60)\n")
    assert done.returncode == 75
    said = f"lbsgd: {number.name} before training began; the same command starts it\n"
    assert done.stderr == said


# The second comes while the main thread is in C and Python cannot run a handler in it.
TWICE = """
import ctypes, threading
with StopSignal() as stop:
    stop.should_stop()
    def send():
        for number in ({first}, {second}):
            time.sleep(0.3)
            os.kill(os.getpid(), number)
    threading.Thread(target=send).start()
    busy = ctypes.CDLL(None)
    rest = {seconds}
    while rest:
        rest = busy.sleep(rest)
print("still here")
"""


def test_a_second_interrupt_ends_at_once():
    done = run(TWICE.format(first=2, second=2, seconds=60))
    assert done.returncode == 130
    assert "SIGINT again: exits at once; the same command resumes" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (15, 15),
        pytest.param(2, 15, marks=pytest.mark.long),
        pytest.param(15, 2, marks=pytest.mark.long),
        pytest.param(1, 1, marks=pytest.mark.long),
        pytest.param(1, 2, marks=pytest.mark.long),
        pytest.param(2, 1, marks=pytest.mark.long),
    ],
)
def test_no_other_second_signal_ends_it(first, second):
    """Cluster managers send SIGTERM more than once, a shell and the system SIGHUP."""
    done = run(TWICE.format(first=first, second=second, seconds=2))
    assert (done.returncode, done.stdout) == (0, "still here\n")
    assert done.stderr.count("\n") == 1


def test_nohup_is_heeded():
    done = run(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with StopSignal() as stop:\n    os.kill(os.getpid(), signal.SIGHUP)\n    time.sleep(0.2)\n"
        "    print(stop.should_stop())\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


@pytest.mark.parametrize(
    "streams",
    ["2>&-", *(pytest.param(s, marks=pytest.mark.long) for s in ("2>/dev/full", "2> >(true)"))],
)
def test_a_signal_counts_though_nobody_can_be_told(streams):
    """As when a terminal hangs up."""
    script = (
        "import os, signal, time\n"
        "from lbsgd.system.preemption import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    stop.should_stop()\n"
        "    time.sleep(0.2)\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    while not stop.should_stop():\n"
        "        time.sleep(0.01)\n"
        "print('asked')\n"
    )
    line = f'exec "$@" {streams}'
    command = ["bash", "-c", line, "bash", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "asked\n", "")
