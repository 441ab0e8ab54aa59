"""Signals to the launcher end its processes, each in its own way, and leave none behind."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from launching import (
    finish,
    is_alive,
    launch,
    launcher,
    said,
    starts,
    wait_until_dead,
    wait_until_ready,
    words,
)

from lbsgd.launch import process_group


@pytest.mark.parametrize(
    ("number", "passed_on", "text"),
    [
        (signal.SIGTERM, "SIGTERM", "SIGTERM: processes 0, 1 get SIGTERM and 600 s"),
        (signal.SIGHUP, "SIGTERM", "SIGHUP: processes 0, 1 get SIGTERM and 600 s"),
        (signal.SIGINT, "SIGINT", "SIGINT passed on to processes 0, 1; a second one kills"),
    ],
)
def test_signal_is_passed_on_once(tmp_path, number, passed_on, text):
    """To the launcher's whole process group, as a terminal does."""
    process = launcher(tmp_path, "on_signals(75); ready()", max_restarts=3, start_new_session=True)
    wait_until_ready(process)
    os.killpg(process.pid, number)
    code, _, err = finish(process)
    assert code == 75
    assert said(err) == [text]
    for i in range(2):
        assert words(tmp_path, f"signals-{i}") == [passed_on]
        assert len(starts(tmp_path, i)) == 1


def test_nothing_is_restarted_after_a_signal(tmp_path):
    process = launcher(tmp_path, "on_signals(1); ready()", max_restarts=3)
    wait_until_ready(process)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 1
    assert re.fullmatch(
        r"process [01] failed \(exit code 1\) after T s(; ending the others)?; "
        r"not restarting after SIGTERM",
        said(err)[1],
    )
    assert len(starts(tmp_path)) == 1


def test_nothing_is_restarted_when_the_signal_comes_as_the_rest_is_ended(tmp_path):
    first = """
end = process_group.Group.end
process_group.Group.end = lambda self: (end(self), os.kill(os.getpid(), signal.SIGTERM))
"""
    code, _, err = launch(tmp_path, "end(7)", max_restarts=3, first=first)
    assert code == 7
    assert said(err)[1:] == ["asked to stop; not restarting"]
    assert len(starts(tmp_path)) == 1


def test_who_knows_no_signals_dies_of_them(tmp_path):
    process = launcher(tmp_path, "ready()", max_restarts=3)
    wait_until_ready(process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_does_not_stop_in_time_is_killed(tmp_path, number):
    process = launcher(tmp_path, "on_signals(None); ready()", max_restarts=3, grace_seconds=0.5)
    wait_until_ready(process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 137
    late = "processes 0, 1 are still running 0.5 s after"
    assert said(err)[1:] == [f"{late} {number.name}; killing them"]
    wait_until_dead(starts(tmp_path, 0) + starts(tmp_path, 1))


@pytest.mark.parametrize(
    ("number", "event"),
    [
        (signal.SIGTERM, "SIGTERM"),
        # Of what saves after Ctrl-C the end of the first sets the limit.
        (signal.SIGINT, "process 1 ended (exit code 75)"),
    ],
)
def test_preempted_though_one_came_to_no_end(tmp_path, number, event):
    process = launcher(
        tmp_path, "on_signals(75 if me else None); ready()", max_restarts=3, grace_seconds=0.5
    )
    wait_until_ready(process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 75
    assert said(err)[1:] == [f"process 0 is still running 0.5 s after {event}; killing it"]
    assert len(starts(tmp_path)) == 1


def send_and_see(process: subprocess.Popen, number: int, text: str) -> None:
    """Sends a signal, and waits for what the launcher says of it."""
    process.send_signal(number)
    for line in process.stderr:
        if text in line.decode():
            return
    raise AssertionError(f"nothing said of {text!r}")


def test_second_interrupt_kills(tmp_path):
    process = launcher(tmp_path, "on_signals(None); ready()", max_restarts=3)
    wait_until_ready(process)
    send_and_see(process, signal.SIGINT, "a second one kills")
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert said(err) == ["SIGINT again; killing processes 0, 1"]
    wait_until_dead(starts(tmp_path, 0) + starts(tmp_path, 1))


def test_after_an_interrupt_the_run_may_take_its_time(tmp_path):
    """What it saves is worth more than the grace of a cluster, for who asked can ask again."""
    process = launcher(tmp_path, "on_signals(None); ready()", grace_seconds=0.1)
    wait_until_ready(process)
    send_and_see(process, signal.SIGINT, "a second one kills")
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # which gives it the grace after all
    code, _, err = finish(process)
    assert code == 137
    assert said(err)[0] == "SIGTERM: processes 0, 1 get SIGTERM and 0.1 s"


def test_further_signals_to_terminate_change_nothing(tmp_path):
    program = "on_signals(None); print('ready'); wait_for('go'); end(75)"
    process = launcher(tmp_path, program)
    wait_until_ready(process)
    send_and_see(process, signal.SIGTERM, "SIGTERM:")
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)  # alike signals that wait become one
    (tmp_path / "go").touch()
    assert finish(process)[0] == 75
    assert words(tmp_path, "signals-0") == ["SIGTERM"]


def test_nohup_is_heeded(tmp_path):
    program = "on_signals(75); print('ready'); wait_for('go')"
    process = launcher(tmp_path, program, first="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    wait_until_ready(process)
    process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    code, _, err = finish(process)
    assert (code, said(err)) == (0, [])
    assert words(tmp_path, "signals-0") == []


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")
def test_killed_launcher_leaves_no_orphans(tmp_path):
    """Two groups would write into one workdir once it was started again."""
    process = launcher(tmp_path, "on_signals(None); ready()", processes=3)
    wait_until_ready(process, 3)
    pids = [pid for i in range(3) for pid in starts(tmp_path, i)]
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    finish(process)
    wait_until_dead(pids)


def test_process_does_not_begin_when_the_launcher_is_gone():
    command = [sys.executable, "-c", process_group._DIES_WITH_LAUNCHER]
    for parent, out in ((os.getpid(), "began\n"), (os.getpid() + 1, "")):
        done = subprocess.run(
            [*command, str(parent), "echo", "began"], capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == (out, "")
