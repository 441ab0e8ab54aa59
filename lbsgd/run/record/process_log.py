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


class ProcessLog:
    """Logs one process: lines with their time, and the stacks of all threads when it stalls.

    What the C++ of JAX ends (SIGABRT, SIGSEGV) leaves its stacks here too; of a log in a bucket, in
    the file on the disk that it is rewritten from.
    """

    def __init__(self, path: AnyPath) -> None:
        """Opens the file for appending.

        Raises:
          ConfigError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_appended(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror or error})") from error
        self._handled_before = faulthandler.is_enabled()
        faulthandler.enable(self._file)
        self._stall_seconds, self._end, self._armed = 0.0, False, -math.inf
        self._closed = threading.Event()

    def line(self, text: str) -> None:
        """Appends a line; a full disk is not worth stopping for."""
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        with contextlib.suppress(OSError):
            self._file.write(f"{now} {text}\n".encode(errors="backslashreplace"))

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
            if time.monotonic() - self._armed > 0.95 * self._stall_seconds:
                text = f"no update has ended for {self._stall_seconds / 60:.3g} minutes"
                self.line(text)
                where = f"the stacks are in {self._file.local}"
                print(f"lbsgd: {text}; {where}", file=sys.stderr, flush=True)
                return

    def _alive(self) -> None:
        now = time.monotonic()
        if self._stall_seconds and now - self._armed > self._stall_seconds / 20:
            self._armed = now
            faulthandler.dump_traceback_later(self._stall_seconds, file=self._file, exit=self._end)

    def close(self) -> None:
        """Ends the watch, and closes the file."""
        self._closed.set()
        if self._stall_seconds:
            faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        if self._handled_before:
            # sys.stderr itself may be no file, as in a notebook.
            faulthandler.enable(sys.__stderr__ or 2)
        self._file.close()
