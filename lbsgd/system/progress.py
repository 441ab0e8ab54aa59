"""Progress bars on a terminal, with lines beside them; lines alone elsewhere."""

import time
from typing import Any

import rich.console
import rich.progress
import rich.table

from lbsgd.system.streams import takes_bar

# Between lines.
SECONDS = 10.0


class Bar:
    """A bar of named columns, on a terminal."""

    def __init__(self, *columns: rich.progress.ProgressColumn, total: float, **fields: Any) -> None:
        """Prepares the bar; `start` shows it.

        Args:
          fields: of the columns, to begin with.
        """
        console = rich.console.Console(highlight=False, force_terminal=True)
        self._bar = rich.progress.Progress(*columns, console=console, expand=True)
        self._task = self._bar.add_task("", total=total, start=False, **fields)

    def start(self, done: float = 0, **fields: Any) -> None:
        """Shows the bar, where so much was done before; its clock starts anew."""
        self._bar.reset(self._task, completed=int(done), **fields)
        self._bar.start()

    def show(self, done: float, **fields: Any) -> None:
        """Shows that so much is done."""
        self._bar.update(self._task, completed=done, **fields)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._bar.stop()


class Progress:
    """Shows how far a preparation is.

    Args:
      what: is being done.
      total: how much there is of it.

    Attributes:
      advanced: how much has been done since the start.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._before, self.advanced = what, total, 0, 0
        self._last = time.monotonic()
        self._bar = _preparation_bar(what, total) if takes_bar() else None

    def start(self, done: int) -> None:
        """Starts, where so much was done before."""
        self._before = done
        if self._bar:
            self._bar.start(done)

    def advance(self, more: int) -> None:
        """Counts so much more as done."""
        self.advanced += more
        done, now = self._before + self.advanced, time.monotonic()
        if self._bar:
            self._bar.show(done)
        elif now - self._last >= SECONDS:
            self._last = now
            self.line(f"{self._what}: {done:,} of {self._total:,}")

    def line(self, text: str) -> None:
        """Says something beside."""
        if self._bar:
            self._bar.line(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar:
            self._bar.close()


def _preparation_bar(what: str, total: int) -> Bar:
    return Bar(
        rich.progress.TextColumn(what, markup=False),
        # It gives way where the terminal is narrow.
        rich.progress.BarColumn(None, table_column=rich.table.Column(ratio=1)),
        rich.progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        rich.progress.TimeRemainingColumn(),
        total=total,
    )
