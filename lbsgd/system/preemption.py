"""Preemption: signals that ask a run to save a checkpoint and stop, to be resumed later.

This module does not import jax when it is imported, so signals are handled before jax has loaded.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

from lbsgd.system.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from lbsgd.system.streams import write_or_lose

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _say(text: str) -> None:
    # Not print: the signal may arrive while the main thread is printing.
    write_or_lose(2, f"lbsgd: {text}\n".encode())


class StopSignal:
    """While entered, SIGINT, SIGTERM and SIGHUP ask the run to stop after the current update.

    A thread reads the signals, so they take effect while the main thread compiles or waits. Before
    the first call of `should_stop` there is nothing to save, and a signal ends the process at once
    with exit code 75. A second SIGINT always ends it at once, with exit code 130. SIGHUP (the
    terminal was closed) stays ignored if it was ignored before (`nohup`).

    Several processes agree on the update to stop after through JAX's own handler of SIGTERM, with
    which `jax.distributed` replaces ours; the other signals are passed on to it.
    """

    def __init__(self) -> None:
        self._asked = self._interrupted = self._reached = False
        self._polls = 0
        self._before: dict[int, Any] = {}

    def should_stop(self) -> bool:
        """Returns whether to stop now; all processes must call it at the same points of the run."""
        import jax
        from jax.experimental import multihost_utils

        self._polls += 1
        if jax.process_count() == 1:
            return self._asked
        if not self._reached:
            # True at one poll only, the same one in all processes.
            self._reached = multihost_utils.reached_preemption_sync_point(self._polls)
        return self._reached

    def __enter__(self) -> "StopSignal":
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        for number in CAUGHT:
            if not (number == signal.SIGHUP and nohup):
                self._before[number] = signal.signal(number, _leave_to_the_thread)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="lbsgd-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)  # the thread reads to its end

    def _watch(self) -> None:
        while numbers := os.read(self._read, 64):
            for number in numbers:
                if number in CAUGHT:
                    self._receive(signal.Signals(number))
        os.close(self._read)

    def _receive(self, number: signal.Signals) -> None:
        if not self._polls:
            _say(f"{number.name} before training began; the same command starts it")
            os._exit(EXIT_PREEMPTED)
        if number == signal.SIGINT:
            if self._interrupted:
                _say(
                    "SIGINT again: exits at once; the same command resumes from the last checkpoint"
                )
                os._exit(EXIT_INTERRUPTED)
            self._interrupted = True
        if not self._asked:
            self._asked = True
            _say(f"{number.name}: saves a checkpoint as soon as it can, and stops")
        self._tell_jax()

    def _tell_jax(self) -> None:
        import jax

        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Does nothing, but must exist: without a handler Python would not tell the thread."""
