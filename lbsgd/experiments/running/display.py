"""Shows a sweep while it runs: a table on a terminal, with lines above it; only lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

import rich.console
import rich.live
import rich.table
import rich.text

from lbsgd.experiments.outcome import OVER
from lbsgd.experiments.running.board import (
    Board,
    Line,
    say_counts,
    say_finals,
    say_time,
    say_value,
)
from lbsgd.system.streams import supports_progress_bar
from lbsgd.system.text import pluralize

# Rows of a table that still fit on most terminals; those with runs that are going come first.
MOST_ROWS = 30
# Between two lines of progress: this part of the time so far, so that a sweep of days has hundreds
# of them and not thousands; and the fewest and the most seconds.
PART, LEAST_SECONDS, MOST_SECONDS = 0.1, 10.0, 300.0


class Display(Protocol):
    """Shows lines, and how far a sweep is."""

    def line(self, text: str) -> None:
        """Prints a line."""

    def refresh(self) -> None:
        """Shows how far the sweep is by now."""


@contextlib.contextmanager
def open_display(board: Board, processes: int) -> Iterator[Display]:
    """Opens the table if there is a terminal for it, and closes it at the end."""
    if not supports_progress_bar():
        yield Lines(board, processes)
        return
    console = rich.console.Console(highlight=False, force_terminal=True)
    with rich.live.Live(console=console, auto_refresh=False, transient=False) as live:
        yield Table(board, processes, live)


class Lines:
    """Shows a line of progress now and then, ever more rarely, where no line came otherwise."""

    def __init__(self, board: Board, processes: int) -> None:
        self._board, self._processes = board, processes
        self._begun = self._last = time.monotonic()
        self._said = ""

    def line(self, text: str) -> None:
        """Prints a line."""
        self._last = time.monotonic()
        print(text, flush=True)

    def refresh(self) -> None:
        """Prints how far the sweep is, if that has changed and was not told for a while."""
        now = time.monotonic()
        if now - self._last < seconds_between(now - self._begun):
            return
        parts = [
            f"{line.name} {_updates(line)}" for line in self._board.lines.values() if line.going
        ]
        text = "; ".join(parts)
        if text == self._said:
            return
        self._said = text
        left = say_time(self._board.seconds_left(self._processes))
        self.line(f"{_done(self._board)}: {text}" + (f"; {left} left" if left else ""))


def seconds_between(elapsed: float) -> float:
    """Computes how long no line of progress comes, so many seconds after the start."""
    return min(max(LEAST_SECONDS, PART * elapsed), MOST_SECONDS)


class Table:
    """Shows a table of the rows on a terminal."""

    def __init__(self, board: Board, processes: int, live: rich.live.Live) -> None:
        self._board, self._processes, self._live = board, processes, live
        self.refresh()

    def line(self, text: str) -> None:
        """Prints a line above the table."""
        self._live.console.print(text, markup=False, soft_wrap=True)
        self.refresh()

    def refresh(self) -> None:
        """Draws the table anew."""
        self._live.update(draw(self._board, self._processes), refresh=True)


def draw(board: Board, processes: int) -> rich.table.Table:
    """Draws the rows: how many runs are done, which are going, the result, the time left."""
    left = say_time(board.seconds_left(processes))
    caption = _done(board) + (f", {left} left" if left else "")
    table = rich.table.Table(caption=caption, box=None, pad_edge=False)
    for name in ("row", "done", "update", "now", "result", "", "left"):
        table.add_column(name, justify="left" if name == "row" else "right", no_wrap=name != "row")
    lines = sorted(board.lines.values(), key=lambda line: not line.going)
    shown = {line.name for line in lines[:MOST_ROWS]}
    for line in board.lines.values():
        if line.name in shown:
            table.add_row(*_cells(board, line, processes))
    return table


def _cells(board: Board, line: Line, processes: int) -> list[rich.text.Text]:
    done = line.count(*OVER)
    left = board.seconds_left_of(line, processes) if done < len(line.standings) else None
    texts = [
        line.name,
        f"{done}/{len(line.standings)}",
        _updates(line),
        ", ".join(say_value(g.value, "") for g in line.going.values() if g.value is not None),
        say_finals(line),
        say_counts(line),
        say_time(left),
    ]
    return [rich.text.Text(text) for text in texts]  # names may look like rich's markup


def _updates(line: Line) -> str:
    """Says how far the runs of a row are: "120/400, 80/400"."""
    return ", ".join(
        f"{going.updates:,}/{going.total:,}" if going.total else f"{going.updates:,}"
        for going in line.going.values()
    )


def _done(board: Board) -> str:
    return f"{board.done} of {pluralize(board.total, 'run')} done"
