"""How far a preparation is: a bar on a terminal, lines elsewhere."""

import time

import rich.console
import rich.progress
import rich.table

from lbsgd.streams import takes_bar

# Between lines.
SECONDS = 10.0


class Progress:
    """Shows how far something is.

    Args:
      what: is being done.
      total: how much there is of it.

    Attributes:
      advanced: how much has been done since the start.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._before, self.advanced = what, total, 0, 0
        self._last = time.monotonic()
        console = rich.console.Console(highlight=False, force_terminal=takes_bar())
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            # It gives way where the terminal is narrow.
            rich.progress.BarColumn(None, table_column=rich.table.Column(ratio=1)),
            rich.progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, start=False)

    def start(self, done: int) -> None:
        """Starts, where so much was done before."""
        self._before = done
        self._bar.update(self._task, completed=done)
        self._bar.start_task(self._task)
        self._bar.start()

    def advance(self, more: int) -> None:
        """So much more is done."""
        self.advanced += more
        self._bar.advance(self._task, more)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= SECONDS:
            self._last = now
            self.line(f"{self._what}: {self._before + self.advanced:,} of {self._total:,}")

    def line(self, text: str) -> None:
        """Says something beside."""
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._bar.stop()
