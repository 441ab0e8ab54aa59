"""A process that trains one job after the other: `python -m lbsgd.experiments.running.worker`.

It is started by `lbsgd sweep run`, never by people. Jobs come over stdin, each a line of JSON,
until that ends; how far they are goes back over a pipe of its own, a JSON object a line: {"run",
"updates", "fraction", "values"} of a run of the job, and {"ended": true} once the job has. What the
runs print goes to stdout. SIGTERM has a run save and stop, and ends the process.
"""

import contextlib
import faulthandler
import json
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from lbsgd.experiments.running.jobs import Job
from lbsgd.system.errors import EXIT_DONE, EXIT_PREEMPTED
from lbsgd.system.libraries import set_up_libraries
from lbsgd.system.preemption import StopSignal
from lbsgd.system.streams import protect_streams

# Between two messages of the progress of a run.
SECONDS = 0.2


def command(answers: int, cores: Sequence[int]) -> list[str]:
    """Makes the command that starts such a process.

    Args:
      answers: the descriptor of the pipe, which it inherits.
      cores: those that it is to keep to; () for all.
    """
    words = [str(answers), ",".join(map(str, cores))]
    return [sys.executable, "-m", "lbsgd.experiments.running.worker", *words]


class Answers:
    """Writes what becomes of jobs into the pipe; nobody may be left to read it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._told = descriptor, dict[int, float]()
        # What the process starts itself would keep the pipe open.
        os.set_inheritable(descriptor, False)

    def progress(
        self, index: int, progress: tuple[int, float], values: Mapping[str, float]
    ) -> None:
        """Tells how far a run is, every now and then, and never waits for a reader."""
        now = time.monotonic()
        found = {name: x for name, x in values.items() if name.startswith("val_")}
        if not found and now - self._told.get(index, -math.inf) < SECONDS:
            return
        if not select.select([], [self._descriptor], [], 0)[1]:
            return
        self._told[index] = now
        updates, fraction = progress
        finite = {name: x for name, x in found.items() if math.isfinite(x)}
        self._write(run=index, updates=updates, fraction=fraction, values=finite)

    def ended(self) -> None:
        """Tells that the job has ended."""
        self._told.clear()
        self._write(ended=True)

    def _write(self, **message: Any) -> None:
        data = (json.dumps(message) + "\n").encode()
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._descriptor, data) :]


def received(pipe: IO[bytes]) -> Iterator[Job]:
    """Yields the jobs that come over a pipe, until it ends, maybe in the middle of one."""
    for line in pipe:
        if line.endswith(b"\n"):
            yield Job.load(line)


def main(argv: Sequence[str]) -> int:
    """Trains what comes over stdin, and returns the exit code."""
    descriptor, cores = argv
    if cores and hasattr(os, "sched_setaffinity"):  # not on every system
        os.sched_setaffinity(0, map(int, cores.split(",")))
    protect_streams()
    faulthandler.enable()
    answers = Answers(int(descriptor))
    set_up_libraries()
    with StopSignal() as stop:
        # jax takes its time; a signal need not wait for it.
        from lbsgd.experiments.running.training import train_job

        for job in received(sys.stdin.buffer):
            train_job(job, lambda done: stop.should_stop(), answers.progress)
            if stop.should_stop():
                return EXIT_PREEMPTED  # whoever asked for it, the job may not have ended
            answers.ended()
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
