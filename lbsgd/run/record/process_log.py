"""What one process of a run tells of itself, each in a file of its own."""

import contextlib
import datetime
import faulthandler
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

import ml_collections

from lbsgd.system.appending import open_appended
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath


class _Faults:
    """Directs faulthandler, of which a process has one, where runs share the process.

    Attributes:
      logs: that are open, the newest last: that one has the stacks.
      armed: when training was last known to go on, of any of them.
      armed_by: the log that will have the stacks of a stall.
    """

    def __init__(self) -> None:
        self.logs: list[ProcessLog] = []
        self._handled_before = False
        self.armed = -math.inf
        self.armed_by: ProcessLog | None = None

    def add(self, log: "ProcessLog") -> None:
        """Has the stacks of this process written into a log from now on."""
        if not self.logs:
            self._handled_before = faulthandler.is_enabled()
        self.logs.append(log)
        faulthandler.enable(log.file)

    def remove(self, log: "ProcessLog") -> None:
        """Has them written where they were before the log was there, if that is open."""
        self.logs.remove(log)
        faulthandler.disable()
        if self.logs:
            faulthandler.enable(self.logs[-1].file)
        elif self._handled_before:
            # sys.stderr itself may be no file, as in a notebook.
            faulthandler.enable(sys.__stderr__ or 2)

    def arm(self, log: "ProcessLog", seconds: float, *, end: bool) -> None:
        """Has them written once training stalls for so long, counted from now."""
        now = time.monotonic()
        if now - self.armed > seconds / 20:
            self.armed, self.armed_by = now, log
            faulthandler.dump_traceback_later(seconds, file=log.file, exit=end)

    def disarm(self) -> None:
        """Watches no more."""
        self.armed_by, self.armed = None, -math.inf
        faulthandler.cancel_dump_traceback_later()


class ProcessLog:
    """Logs one process: lines with their time, and the stacks of all threads when it stalls.

    Of several in a process, as of runs that are trained together, training stalls when none goes
    on, and one of them has the stacks.

    What the C++ of JAX ends (SIGABRT, SIGSEGV) leaves its stacks here too; of a log in a bucket, in
    the file on the disk that it is rewritten from.

    Attributes:
      file: that it is written to.
    """

    def __init__(self, path: AnyPath) -> None:
        """Opens the file for appending.

        Raises:
          ConfigError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open_appended(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror or error})") from error
        _FAULTS.add(self)
        self._stall_seconds, self._end = 0.0, False
        self._closed = threading.Event()

    def line(self, text: str) -> None:
        """Appends a line; a full disk is not worth stopping for."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        with contextlib.suppress(OSError):
            self.file.write(f"{now} {text}\n".encode(errors="backslashreplace"))

    def failure(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Writes down what ended the run, if anything did; has the form of `__exit__`."""
        if error:
            self.line("".join(traceback.format_exception(error)).rstrip())

    def watch(self, limits: ml_collections.ConfigDict) -> Callable[[], None]:
        """Watches that training goes on, which is said by calling what this returns.

        When that was not called for `stall_minutes`, the stacks of all threads are written here.
        Python may be stuck then: faulthandler needs none of it. If it is not, a line says so first.

        Args:
          limits: the config's `runtime`.
        """
        self._stall_seconds = 60 * limits.stall_minutes
        self._end = limits.on_stall == "end"
        self._alive()
        if self._stall_seconds:
            threading.Thread(target=self._tell, name="lbsgd-stall", daemon=True).start()
        return self._alive

    def _tell(self) -> None:
        """Says that the run stalls, just before the stacks are written."""
        while not self._closed.wait(self._stall_seconds / 40):
            armed_by = _FAULTS.armed_by
            if armed_by and time.monotonic() - _FAULTS.armed > 0.95 * self._stall_seconds:
                text = f"no update has ended for {self._stall_seconds / 60:.3g} minutes"
                self.line(text)
                if armed_by is self:
                    where = f"the stacks are in {self.file.local}"
                    print(f"lbsgd: {text}; {where}", file=sys.stderr, flush=True)
                return

    def _alive(self) -> None:
        if self._stall_seconds:
            _FAULTS.arm(self, self._stall_seconds, end=self._end)

    def close(self) -> None:
        """Ends the watch, and closes the file."""
        self._closed.set()
        if _FAULTS.armed_by is self:
            _FAULTS.disarm()
            # Others go on, and may be the ones that stall.
            others = [log for log in _FAULTS.logs if log is not self]
            for other in others[-1:]:
                other._alive()
        _FAULTS.remove(self)
        self.file.close()


_FAULTS = _Faults()
