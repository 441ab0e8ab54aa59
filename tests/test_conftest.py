"""Tests stand alone, also in the background of a shell that has signals ignored."""

import pathlib
import subprocess
import sys

import psutil
from hanging import HANG_SECONDS

LEAVES = """
import subprocess, sys, time

def test_that_leaves_a_process():
    text = "import time; time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", text], start_new_session=True)
    open("left", "w").write(str(process.pid))
    process.returncode = 0  # no warning that it is still there
"""
SIGNALS = """
import signal, subprocess, sys

def test_that_a_child_heeds_signals():
    text = "import signal; print([signal.getsignal(n).name for n in (1, 3, 15)])"
    said = subprocess.check_output([sys.executable, "-c", text], text=True)
    assert said.strip() == "['SIG_DFL', 'SIG_DFL', 'SIG_DFL']"
    text = "import signal; print(signal.getsignal(2) is signal.default_int_handler)"
    assert subprocess.check_output([sys.executable, "-c", text], text=True).strip() == "True"
    signal.raise_signal(signal.SIGHUP)  # which these tests themselves still ignore
"""


def test_a_process_that_is_left_fails_and_ends_and_ignored_signals_are_heeded(tmp_path):
    conftest = pathlib.Path(__file__).with_name("conftest.py").read_text()
    assert "GRACE_SECONDS = 20" in conftest
    conftest = conftest.replace("GRACE_SECONDS = 20", "GRACE_SECONDS = 0.5")
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_leaves.py").write_text(LEAVES)
    (tmp_path / "test_signals.py").write_text(SIGNALS)
    (tmp_path / "pytest.ini").touch()
    script = f"trap '' HUP INT QUIT; exec {sys.executable} -m pytest -p no:cacheprovider -q"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 1, done.stdout
    assert "2 passed, 1 error" in done.stdout
    assert "left to other tests: 1 processes of test_leaves.py::test_that_leaves" in done.stdout
    pid = int((tmp_path / "left").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
