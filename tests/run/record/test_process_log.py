"""The log of a process: lines, and stacks when it stalls or dies."""

import faulthandler
import re
import subprocess
import sys

import pytest

from lbsgd.run.record.process_log import ProcessLog
from lbsgd.system.errors import ConfigError


def test_lines_have_their_time_and_are_appended(tmp_path):
    path = tmp_path / "logs" / "0.log"
    handled = faulthandler.is_enabled()
    for text in ("first", "second"):
        log = ProcessLog(path)
        log.line(text)
        log.close()
    assert faulthandler.is_enabled() == handled
    first, second = path.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d first", first)
    assert second.endswith(" second")


def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(ConfigError, match=r"0\.log cannot be written"):
        ProcessLog(tmp_path / "logs" / "0.log")


# Two threads: one that stalls with Python's lock in its hand, and one that waits for it.
STALL = """
import ctypes, pathlib, sys, threading, time
from lbsgd.run.config import default_config
from lbsgd.run.record.process_log import ProcessLog

def waits_for_ever():
    time.sleep(60)

limits = default_config().runtime
limits.stall_minutes, limits.on_stall = 0.5 / 60, sys.argv[2]
log = ProcessLog(pathlib.Path(sys.argv[1]))
threading.Thread(target=waits_for_ever, daemon=True).start()
alive = log.watch(limits)

def stalls():
    ctypes.PyDLL(None).usleep(1_000_000)  # without giving up the lock
    time.sleep(1)

for _ in range({beats}):
    alive()
    time.sleep(0.1)
if {beats} < 20:
    stalls()
log.close()
print("here")
"""


def stall(path, on_stall: str, beats: int) -> subprocess.CompletedProcess:
    script = STALL.replace("{beats}", str(beats))
    return subprocess.run(
        [sys.executable, "-c", script, str(path), on_stall], capture_output=True, text=True
    )


def test_all_stacks_are_written_when_no_update_ends(tmp_path):
    path = tmp_path / "0.log"
    done = stall(path, "report", beats=1)
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
    text = path.read_text()
    assert "Timeout (0:00:00.500000)!" in text
    assert "in stalls" in text
    assert "in waits_for_ever" in text
    said = f"lbsgd: no update has ended for 0.00833 minutes; the stacks are in {path}\n"
    assert done.stderr == said


def test_a_stalled_process_ends_where_that_is_asked_for(tmp_path):
    done = stall(tmp_path / "0.log", "end", beats=1)
    assert (done.returncode, done.stdout) == (1, "")
    assert "in stalls" in (tmp_path / "0.log").read_text()


def test_a_process_that_goes_on_is_left_alone(tmp_path):
    """For four times as long as it may stall."""
    done = stall(tmp_path / "0.log", "end", beats=20)
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
    assert (tmp_path / "0.log").read_text() == ""


def test_what_ends_the_process_from_c_leaves_its_stacks(tmp_path):
    path = tmp_path / "0.log"
    script = (
        "import os, pathlib\n"
        "from lbsgd.run.record.process_log import ProcessLog\n"
        f"log = ProcessLog(pathlib.Path({str(path)!r}))\n"
        "def aborts():\n    os.abort()\n"
        "aborts()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -6
    assert "Fatal Python error: Aborted" in path.read_text()
    assert "in aborts" in path.read_text()


# Runs at once have a log each in one process; the first two of three are closed before the rest.
SEVERAL = """
import os, pathlib, sys, time
from lbsgd.run.config import default_config
from lbsgd.run.record.process_log import ProcessLog

limits = default_config().runtime
limits.stall_minutes = 0.5 / 60
folder = pathlib.Path(sys.argv[1])
first, kept, newest = (ProcessLog(folder / name) for name in ("first", "kept", "newest"))
for log in (first, kept, newest):
    alive = log.watch(limits)
alive()
first.close()
newest.close()

def stalls_or_aborts():
    time.sleep(1) if sys.argv[2] == "stall" else os.abort()

stalls_or_aborts()
kept.close()
"""


@pytest.mark.parametrize("how", ["stall", "abort"])
def test_of_several_in_a_process_one_that_is_open_has_the_stacks(tmp_path, how):
    command = [sys.executable, "-c", SEVERAL, str(tmp_path), how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (0 if how == "stall" else -6), done.stderr
    assert "in stalls_or_aborts" in (tmp_path / "kept").read_text()
    assert (tmp_path / "first").read_text() == (tmp_path / "newest").read_text() == ""
    if how == "stall":
        assert done.stderr.count("no update has ended") == 1
        assert done.stderr.endswith(f"the stacks are in {tmp_path / 'kept'}\n")
