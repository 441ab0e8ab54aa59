"""Worker processes on this machine: each trains job after job, and is replaced if it dies.

Linux kills them with this process; elsewhere they end with their job.
"""

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any, NamedTuple

from lbsgd.experiments.outcome import ENDED, OVER, Standing, Status, note_failure
from lbsgd.experiments.running.board import Board, say_end
from lbsgd.experiments.running.display import Display
from lbsgd.experiments.running.job_queue import Queue
from lbsgd.experiments.running.jobs import MOST_STARTS, Job, Run, saved_updates
from lbsgd.experiments.running.session import Engine
from lbsgd.experiments.running.shares import Share, shares
from lbsgd.experiments.running.worker import command
from lbsgd.launch.process_group import Ended, tied_to_this_process
from lbsgd.system.errors import EXIT_INTERRUPTED, ConfigError
from lbsgd.system.files import any_path
from lbsgd.system.text import one_line

# Between two looks of the display at how far the sweep is.
SECONDS = 0.5
# For a worker process to end once it has nothing left to do.
SECONDS_TO_END = 60.0
# Lines of a log are read back from so many of its last bytes.
TAIL_BYTES = 2**15


class Message(NamedTuple):
    """A message of a worker process."""

    worker: "Worker"
    content: dict[str, Any]


Event = Message | Ended | signal.Signals


class Worker:
    """A running worker process.

    Attributes:
      job: that it has; None while it waits for one.

    Raises:
      ConfigError: its log cannot be written.
    """

    def __init__(
        self, number: int, share: Share, log: pathlib.Path, events: "queue.SimpleQueue[Event]"
    ) -> None:
        self.number, self.log = number, log
        self._events = events
        self.job: Job | None = None
        with _opened(log) as file:
            read, write = os.pipe()
            self._popen = subprocess.Popen(
                tied_to_this_process(command(write, share.cores)),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **share.environment},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=[write],
                start_new_session=True,
            )
        os.close(write)
        self._reader = threading.Thread(
            target=self._read, args=[os.fdopen(read, "rb")], daemon=True
        )
        self._reader.start()
        threading.Thread(target=self._await_end, daemon=True).start()

    def give(self, job: Job) -> None:
        """Has it train a job."""
        self.job = job
        self._send(job)

    def finish(self) -> None:
        """Has it end after its job."""
        assert self._popen.stdin
        with contextlib.suppress(OSError):
            self._popen.stdin.close()

    def stop(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._popen.send_signal(number)

    def _send(self, job: Job) -> None:
        assert self._popen.stdin
        with contextlib.suppress(OSError):  # it has ended, which is an event of its own
            self._popen.stdin.write(f"{job.dump()}\n".encode())
            self._popen.stdin.flush()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                with contextlib.suppress(ValueError):  # cut short as it was killed
                    self._events.put(Message(self, json.loads(line)))

    def _await_end(self) -> None:
        code = self._popen.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)  # what it started itself
        self._reader.join(timeout=1)
        self._events.put(Ended(self.number, code, 0.0))


class Pool:
    """Trains what a queue hands out, in worker processes.

    Attributes:
      stopped: whether a signal ended it before all was done.
    """

    def __init__(
        self,
        jobs: Queue,
        board: Board,
        display: Display,
        shares: Sequence[Share],
        logs: pathlib.Path,
    ) -> None:
        self._queue, self._board, self._display = jobs, board, display
        self._shares, self._logs = shares, logs
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._workers: dict[int, Worker] = {}
        # By a job's first workdir: how far it was when it was started, and how often it was so far.
        self._starts: dict[str, tuple[int, int]] = {}
        # When all workers were first told to end.
        self._dismissed = 0.0
        self.stopped = False

    def run(self) -> None:
        """Trains until nothing is left to do, or a signal asks to stop.

        SIGTERM, SIGHUP and a first SIGINT have all runs save and stop; a second SIGINT kills them.
        """
        try:
            with _caught(self._events):
                self._hand_out()
                while self._workers:
                    with contextlib.suppress(queue.Empty):
                        self._handle(self._events.get(timeout=SECONDS))
                    self._hand_out()
                    self._display.refresh()
        finally:
            for worker in self._workers.values():
                worker.stop(signal.SIGKILL)

    def _hand_out(self) -> None:
        """Gives jobs to workers that wait; when all wait and there is no job, they end."""
        for number in range(len(self._shares)):
            worker = self._workers.get(number)
            if worker is not None and worker.job:
                continue
            job = None if self.stopped else self._next()
            if job is None:
                continue
            if worker is None:
                log = self._logs / f"worker_{number}.log"
                worker = Worker(number, self._shares[number], log, self._events)
                self._workers[number] = worker
            self._start(worker, job)
        if not any(worker.job for worker in self._workers.values()):
            self._dismiss()

    def _dismiss(self) -> None:
        """Has workers end that wait, for there is nothing left to do; kills those that hang."""
        self._dismissed = self._dismissed or time.monotonic()
        for worker in self._workers.values():
            worker.finish()
            if time.monotonic() - self._dismissed > SECONDS_TO_END:
                worker.stop(signal.SIGKILL)

    def _next(self) -> Job | None:
        """Takes the next job of which anything is left."""
        while job := self._queue.next():
            left = job.left()
            if left:
                return left
            self._queue.over(job)
        return None

    def _start(self, worker: Worker, job: Job) -> None:
        there, starts = saved_updates(job), self._starts.get(_key(job), (-1, 0))
        self._starts[_key(job)] = (there, starts[1] + 1 if starts[0] == there else 1)
        for run in job.runs:
            self._board.begin(run, len(job.runs))
        worker.give(job)

    def _handle(self, event: Event) -> None:
        if isinstance(event, signal.Signals):
            self._stop(event)
        elif isinstance(event, Ended):
            self._reap(event)
        elif self._workers.get(event.worker.number) is event.worker:  # one that is gone may be late
            self._hear(event.worker, event.content)

    def _hear(self, worker: Worker, told: dict[str, Any]) -> None:
        if "ended" in told:
            self._over(worker)
        elif worker.job:
            run = worker.job.runs[told["run"]]
            self._board.show(run, told["updates"], told["fraction"], told["values"])

    def _over(self, worker: Worker) -> None:
        """Notes how the runs of a job stand that a worker has ended."""
        job, worker.job = worker.job, None
        assert job
        for run in job.runs:
            standing = run.standing()
            if standing.status not in ENDED:
                standing = Standing(Status.FAILED, f"see {worker.log}", standing.result)
            self._end(run, standing)
        self._queue.over(job)

    def _end(self, run: Run, standing: Standing) -> None:
        self._board.end(run, standing)
        if standing.status in ENDED:
            count = f" ({self._board.done} of {self._board.total} runs done)"
            self._display.line(say_end(run, standing) + count)

    def _reap(self, ended: Ended) -> None:
        """Has a job that lost its process tried again, as long as it gets any further."""
        worker = self._workers.pop(ended.number)
        worker.finish()  # of which nothing is left but a pipe
        job = worker.job
        if job is None:
            return
        if not job.left():  # it had not come to say so
            self._over(worker)
            return
        there, starts = self._starts[_key(job)]
        how = f"its process ended ({ended.how})"
        if self.stopped:
            for run in job.runs:
                self._end(run, run.standing())
        elif saved_updates(job) == there and starts >= MOST_STARTS:
            self._give_up(job, f"{how} {starts} times in a row; {_last_words(worker.log)}")
        else:
            self._display.line(f"{job}: {how}; it is started again")
            for run in job.runs:
                self._board.end(run, run.standing())
            self._queue.put_back(job)

    def _give_up(self, job: Job, reason: str) -> None:
        for run in job.runs:
            if run.standing().status not in OVER:
                with contextlib.suppress(OSError):  # then it is said here alone
                    note_failure(any_path(run.workdir), reason)
                self._end(run, Standing(Status.FAILED, reason, {}))
            else:
                self._end(run, run.standing())
        self._queue.over(job)

    def _stop(self, number: signal.Signals) -> None:
        if self.stopped and number == signal.SIGINT:
            for worker in self._workers.values():
                worker.stop(signal.SIGKILL)
            self._display.line("SIGINT again: all runs are killed")
            raise SystemExit(EXIT_INTERRUPTED)
        if not self.stopped:
            self.stopped = True
            self._display.line(f"{number.name}: all runs save and stop; a second Ctrl-C kills them")
            for worker in self._workers.values():
                worker.finish()
                worker.stop(signal.SIGTERM)


def local_engine(processes: int, environment: Mapping[str, str]) -> Engine:
    """Makes the engine of this machine.

    Args:
      processes: how many there are at most.
      environment: of this process.

    Raises:
      ConfigError: there are too few GPUs for them.
    """
    own = shares(processes, environment)

    def engine(jobs: Queue, board: Board, display: Display, logs: pathlib.Path) -> bool:
        pool = Pool(jobs, board, display, own, logs)
        pool.run()
        return pool.stopped

    return engine


def _opened(log: pathlib.Path) -> IO[bytes]:
    try:
        return log.open("ab")
    except OSError as error:
        raise ConfigError(
            f"{log} cannot be written ({error.strerror or error}); choose another --workdir"
        ) from error


@contextlib.contextmanager
def _caught(events: "queue.SimpleQueue[Event]") -> Iterator[None]:
    """Makes events of the signals that ask to stop; SIGHUP stays ignored under nohup."""

    def note(number: int, frame: FrameType | None) -> None:
        events.put(signal.Signals(number))

    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [signal.SIGINT, signal.SIGTERM, *([] if nohup else [signal.SIGHUP])]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _key(job: Job) -> str:
    """Names a job, also when some of its runs are over; the last of them is so last."""
    return job.runs[-1].workdir


def _last_words(log: pathlib.Path) -> str:
    """Quotes the last line of a log, and names it."""
    with contextlib.suppress(OSError):
        lines = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").split("\n")
        # Python lists all modules behind the stacks of a process that was aborted.
        said = [x for x in map(str.strip, lines) if x and not x.startswith("Extension modules:")]
        return f"the last line of {log} is: {one_line(said[-1] if said else '')}"
    return f"see {log}"
