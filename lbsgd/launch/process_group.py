"""A group of processes: started together, watched until all have ended, killed if one fails.

`lbsgd.launch.local` documents how the exit code of a run follows from those of its processes.
"""

import contextlib
import itertools
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import IO, NamedTuple

from lbsgd.system.errors import (
    EXIT_DIVERGED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER,
)
from lbsgd.system.streams import write_or_lose
from lbsgd.system.text import noun

# After a process has died: how long to wait for the others. One of them may be about to exit with a
# mistake of the user, which is the cause.
COLLECT_SECONDS = 0.5

# After a mistake of the user or divergence: how long the others may take to find the same.
FOLLOW_SECONDS = 10.0

LONGEST_LINE = 2**16

# Exit codes that are results of the run; if processes end with different ones, the first counts.
RESULTS = (EXIT_USER, EXIT_DIVERGED, EXIT_PREEMPTED)

# Exit codes that a process may have only because another one ended.
_MAY_FOLLOW = (EXIT_FAILED, -signal.SIGABRT, -signal.SIGTERM, -signal.SIGINT)

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN = "SIGINT again"

# Runs between the launcher and the program, because code after a fork is not safe with threads.
# 1 is PR_SET_PDEATHSIG, which stays set after exec. The launcher may have died before it was set,
# hence the comparison with the parent.
_DIES_WITH_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Output:
    """Writes lines to stdout and stderr, one at a time.

    A thread writes them, so that a slow terminal does not delay the handling of processes and
    signals.
    """

    def __init__(self, seconds_to_finish: float) -> None:
        self._lines: queue.Queue[tuple[int, bytes] | None] = queue.Queue(1000)
        self._seconds = seconds_to_finish
        self._thread = threading.Thread(target=self._write, daemon=True)

    def copy(self, pipe: IO[bytes], file: int, prefix: str) -> None:
        """Copies all lines from `pipe` to the file descriptor `file`, each with a prefix."""
        with pipe:
            while line := pipe.readline(LONGEST_LINE):
                self._lines.put((file, prefix.encode() + line.removesuffix(b"\n") + b"\n"))

    def say(self, text: str) -> None:
        """Writes a line of the launcher itself."""
        with contextlib.suppress(queue.Full):
            self._lines.put((2, f"[launcher] {text}\n".encode()), timeout=1)

    def __enter__(self) -> "Output":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=self._seconds)
            self._thread.join(self._seconds)

    def _write(self) -> None:
        for file, line in iter(self._lines.get, None):
            write_or_lose(file, line)


class Signals:
    """While entered, catches the signals in `CAUGHT` and SIGCHLD for `wait`."""

    def __enter__(self) -> "Signals":
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        caught = [n for n in CAUGHT if not (n == signal.SIGHUP and nohup)]
        self._before = {n: signal.signal(n, _do_nothing) for n in (*caught, signal.SIGCHLD)}
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float | None) -> list[signal.Signals]:
        """Waits for signals and returns them in order; empty after `seconds` or a child's end."""
        if not select.select([self._read], [], [], seconds)[0]:
            return []
        return [signal.Signals(n) for n in os.read(self._read, 1024) if n in CAUGHT]


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Does nothing, but must exist: without a handler Python would not write to the descriptor."""


class Process(NamedTuple):
    """A running process."""

    number: int
    popen: subprocess.Popen[bytes]
    readers: list[threading.Thread]


class Ended(NamedTuple):
    """A process that ended by itself: its return code (-n for signal n), and after how long."""

    number: int
    code: int
    seconds: float

    def __str__(self) -> str:
        died = f"died ({_signal_name(-self.code)})" if self.code < 0 else f"failed ({self.how})"
        return f"process {self.number} {died} after {self.seconds:.1f} s"

    @property
    def how(self) -> str:
        """The signal or the exit code that it ended with, in words."""
        return _signal_name(-self.code) if self.code < 0 else f"exit code {self.code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


class Limit(NamedTuple):
    """A deadline, `seconds` after `event`, at which processes that still run are killed."""

    at: float
    seconds: float
    event: str
    is_failure: bool

    def text(self, late: Sequence[Process]) -> str:
        """Describes that processes missed the deadline."""
        verb, them = ("is", "it") if len(late) == 1 else ("are", "them")
        since = f"{self.seconds:g} s after {self.event}"
        return f"{_names(late)} {verb} still running {since}; killing {them}"


class Verdict(NamedTuple):
    """The end of a group: the exit code of the launcher, and what to print."""

    code: int
    text: str
    failed: bool = False


class Group:
    """The processes of one start of a run."""

    def __init__(self, output: Output, signals: Signals, grace_seconds: float) -> None:
        self._output, self._signals, self._grace = output, signals, grace_seconds
        self._started = time.monotonic()
        self._limit: Limit | None = None
        self.received: list[signal.Signals] = []  # what asked this group to stop
        self._running: list[Process] = []
        self._ended: list[Ended] = []

    def start(
        self, commands: Sequence[list[str]], environments: Sequence[Mapping[str, str]]
    ) -> None:
        """Starts one process for each command, in a session of its own."""
        for index, (command, extra) in enumerate(zip(commands, environments)):
            popen = subprocess.Popen(
                tied_to_this_process(command),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._running.append(Process(index, popen, self._read(index, popen)))
        pids = ", ".join(str(process.popen.pid) for process in self._running)
        self._output.say(f"{_names(self._running)} started: pid {pids}")

    def _read(self, index: int, popen: subprocess.Popen[bytes]) -> list[threading.Thread]:
        jobs = [(popen.stdout, 1, f"[{index}] "), (popen.stderr, 2, f"[{index}] ")]
        readers = [threading.Thread(target=self._output.copy, args=j, daemon=True) for j in jobs]
        for reader in readers:
            reader.start()
        return readers

    def wait(self) -> Verdict:
        """Passes on signals until all processes have ended or the deadline is reached."""
        while self._running and not self._is_over():
            left = self._limit and max(0.0, self._limit.at - time.monotonic())
            for number in self._signals.wait(left):
                self._receive(number)
            self._reap()
        return self._verdict()

    def end(self) -> None:
        """Kills the processes that still run."""
        for process in self._running:
            _kill(process)
        while self._running:
            self._running[0].popen.wait()
            self._remove(self._running[0])

    def _is_over(self) -> bool:
        return self._limit is not None and time.monotonic() >= self._limit.at

    def _end_by(self, seconds: float, event: str, is_failure: bool = False) -> None:
        limit = Limit(time.monotonic() + seconds, seconds, event, is_failure)
        if self._limit is None or limit.at < self._limit.at:
            self._limit = limit

    def _receive(self, number: signal.Signals) -> None:
        before = set(self.received)
        self.received.append(number)
        if number == signal.SIGINT and number in before:
            self._end_by(0, _AGAIN)
        elif number == signal.SIGINT:
            self._pass_on(number, "SIGINT passed on to {}; a second one kills")
        elif before <= {signal.SIGINT}:
            self._pass_on(signal.SIGTERM, f"{number.name}: {{}} get SIGTERM and {self._grace:g} s")
            self._end_by(self._grace, number.name)

    def _pass_on(self, number: signal.Signals, text: str) -> None:
        self._output.say(text.format(_names(self._running)))
        for process in self._running:
            process.popen.send_signal(number)

    def _reap(self) -> None:
        over = [p for p in self._running if p.popen.poll() is not None]
        for process in sorted(over, key=lambda p: p.popen.returncode in _MAY_FOLLOW):
            self._remove(process)
            seconds = time.monotonic() - self._started
            self._record_end(Ended(process.number, process.popen.returncode, seconds))

    def _remove(self, process: Process) -> None:
        self._running.remove(process)
        _kill(process)  # and with it the processes that it started
        for reader in process.readers:  # its last lines are printed before those about its end
            reader.join(timeout=1)

    def _record_end(self, ended: Ended) -> None:
        self._ended.append(ended)
        event = f"process {ended.number} ended ({ended.how})"
        if ended.code in (EXIT_DONE, EXIT_PREEMPTED):
            self._end_by(self._grace, event, is_failure=True)
        elif ended.code in (EXIT_USER, EXIT_DIVERGED):
            self._end_by(min(FOLLOW_SECONDS, self._grace), event)
        else:
            self._end_by(COLLECT_SECONDS, event)

    def _verdict(self) -> Verdict:
        late = self._limit if self._running else None
        if late and late.event == _AGAIN:
            return Verdict(EXIT_INTERRUPTED, f"{_AGAIN}; killing {_names(self._running)}")
        text = late.text(self._running) if late else ""
        chosen = self._chosen()
        if chosen in (EXIT_USER, EXIT_DIVERGED):
            return Verdict(chosen, text)
        if late and late.is_failure and not self.received:
            return Verdict(_exit_code(-signal.SIGKILL), text, failed=True)
        if chosen == EXIT_PREEMPTED:
            return Verdict(chosen, text)
        for ended in self._ended:
            if ended.code != EXIT_DONE:
                others = "; ending the others" if self._running else ""
                return Verdict(_exit_code(ended.code), f"{ended}{others}", failed=True)
        return Verdict(_exit_code(-signal.SIGKILL) if late else EXIT_DONE, text)

    def _chosen(self) -> int:
        """Returns the first of `RESULTS` that a process ended with; 0 if there is none."""
        by_itself = (EXIT_DONE, *RESULTS, *_MAY_FOLLOW)
        # A process that was killed from outside may be the cause of later exit codes of others, so
        # only earlier ones count.
        ended = itertools.takewhile(lambda e: e.code in by_itself, self._ended)
        codes = {e.code for e in ended}
        return next((code for code in RESULTS if code in codes), EXIT_DONE)


def tied_to_this_process(command: list[str]) -> list[str]:
    """Wraps a command so that it is killed together with this process, on Linux.

    Strictly it is the thread that starts it: with its end Linux kills the command.
    """
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _DIES_WITH_LAUNCHER, str(os.getpid()), *command]


def _kill(process: Process) -> None:
    """Kills a process and those that it started, if any still run."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.popen.pid, signal.SIGKILL)


def _names(processes: Sequence[Process]) -> str:
    """Formats the numbers of processes: "processes 0, 2"."""
    numbers = ", ".join(str(p.number) for p in processes)
    return f"{noun(len(processes), 'process', 'processes')} {numbers}"


def _exit_code(code: int) -> int:
    """Converts a return code to the exit code that a shell would report."""
    return 128 - code if code < 0 else code
