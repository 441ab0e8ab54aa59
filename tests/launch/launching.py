"""A launcher of small programs, and what became of its processes."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

from hanging import HANG_SECONDS

ROOT = pathlib.Path(__file__).parent.parent.parent

DRIVER = """
import json, os, signal, sys
from lbsgd.launch import local, process_group
arguments, constants, first = json.loads(sys.argv[1])
vars(process_group).update(constants)
exec(first)
sys.exit(local.launch(**arguments))
"""

# What the small programs of the tests have in common.
PRELUDE = """
import os, pathlib, signal, subprocess, sys, time

signal.alarm(1200)  # nothing outlives a test that is broken
flags = dict(flag.lstrip("-").split("=") for flag in sys.argv[1:4])
me, of = int(flags["process_id"]), int(flags["num_processes"])

def note(name, text):
    with open(name, "a") as file:
        file.write(text + " ")

def end(code):
    if code < 0:
        os.kill(os.getpid(), -code)
        time.sleep(60)
    os._exit(code)

def wait_for(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)

def wait_until_reaped(process):
    pid = int(pathlib.Path(f"starts-{process}").read_text().split()[-1])
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)

def on_signals(code):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: got(number, code))

def got(number, code):
    note(f"signals-{me}", signal.Signals(number).name)
    if code is not None:
        os._exit(code)

def ready():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)

note(f"starts-{me}", str(os.getpid()))
start = len(pathlib.Path(f"starts-{me}").read_text().split())
"""


def launcher(
    folder: pathlib.Path,
    program: str,
    processes: int = 2,
    max_restarts: int = 0,
    grace_seconds: float = 600,
    constants: dict | None = None,
    first: str = "",
    **how,
) -> subprocess.Popen:
    """A launcher of `program`, which first sets `constants` and does what `first` says."""
    arguments = {
        "command": [sys.executable, "-S", "-c", PRELUDE + program],
        "arguments": ["--and", "this one"],
        "environments": [{"WHOSE": f"of {i}"} for i in range(processes)],
        "max_restarts": max_restarts,
        "grace_seconds": grace_seconds,
    }
    text = json.dumps([arguments, constants or {}, first])
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONUNBUFFERED", None)
    return subprocess.Popen([sys.executable, "-c", DRIVER, text], cwd=folder, env=env, **how)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def launch(folder: pathlib.Path, program: str, **how) -> tuple[int, str, str]:
    return finish(launcher(folder, program, **how))


def wait_until_ready(process: subprocess.Popen, processes: int = 2) -> None:
    seen = set()
    while len(seen) < processes:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        if b"ready" in line:
            seen.add(line)


def words(folder: pathlib.Path, name: str) -> list[str]:
    path = folder / name
    return path.read_text().split() if path.exists() else []


def starts(folder: pathlib.Path, process: int = 0) -> list[int]:
    """The pids of a process in all starts."""
    return [int(pid) for pid in words(folder, f"starts-{process}")]


def is_alive(pid: int) -> bool:
    """Zombies are not: nobody may be left to reap an orphan."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # as it ends while it is looked at
        return False
    return state not in "ZX"


def wait_until_dead(pids: list[int]) -> None:
    give_up = time.monotonic() + HANG_SECONDS
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < give_up, "still running"
        time.sleep(0.01)


def said(err: str) -> list[str]:
    """The launcher's own lines but those with pids, with times as T."""
    lines = [line.removeprefix("[launcher] ") for line in err.splitlines() if "[launcher]" in line]
    return [re.sub(r"after \d+\.\d s", "after T s", line) for line in lines if "pid" not in line]
