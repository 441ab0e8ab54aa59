"""Progress: a bar on a terminal, with lines above it; only lines elsewhere."""

import time
from typing import Any

import rich.console
import rich.progress
import rich.table

from lbsgd.system.streams import supports_progress_bar

# Between two lines of progress.
SECONDS = 10.0


class Bar:
    """A progress bar on a terminal."""

    def __init__(self, *columns: rich.progress.ProgressColumn, total: float, **fields: Any) -> None:
        """Prepares the bar; `start` shows it.

        Args:
          columns: of the bar, from left to right.
          total: the amount at which the bar is full.
          fields: initial values of the columns' fields.
        """
        console = rich.console.Console(highlight=False, force_terminal=True)
        self._bar = rich.progress.Progress(*columns, console=console, expand=True)
        self._task = self._bar.add_task("", total=total, start=False, **fields)

    def start(self, done: float = 0, **fields: Any) -> None:
        """Shows the bar, with `done` already done, and starts its clock."""
        self._bar.reset(self._task, completed=int(done), **fields)
        self._bar.start()

    def show(self, done: float, **fields: Any) -> None:
        """Updates the bar: `done` is done."""
        self._bar.update(self._task, completed=done, **fields)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Removes the bar and restores the terminal."""
        self._bar.stop()


class CountProgress:
    """Shows how many of a known number of things are done.

    Args:
      what: names the activity and its unit, as "train, images".
      total: how many things there are.

    Attributes:
      advanced: how many have been done since the start.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._before, self.advanced = what, total, 0, 0
        self._last = time.monotonic()
        self._bar = _preparation_bar(what, total) if supports_progress_bar() else None

    def start(self, done: int) -> None:
        """Starts, with `done` already done before."""
        self._before = done
        if self._bar:
            self._bar.start(done)

    def advance(self, more: int) -> None:
        """Counts `more` things as done."""
        self.advanced += more
        done, now = self._before + self.advanced, time.monotonic()
        if self._bar:
            self._bar.show(done)
        elif now - self._last >= SECONDS:
            self._last = now
            self.line(f"{self._what}: {done:,} of {self._total:,}")

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar:
            self._bar.line(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Removes the bar and restores the terminal."""
        if self._bar:
            self._bar.close()


def _preparation_bar(what: str, total: int) -> Bar:
    return Bar(
        rich.progress.TextColumn(what, markup=False),
        # The bar itself shrinks if the terminal is narrow, and the numbers stay.
        rich.progress.BarColumn(None, table_column=rich.table.Column(ratio=1)),
        rich.progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        rich.progress.TimeRemainingColumn(),
        total=total,
    )
