"""Shows how far a run is: a bar on a terminal, lines elsewhere and in the log."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import rich.console
import rich.progress
import rich.table

from lbsgd.system.progress import Bar
from lbsgd.system.streams import supports_progress_bar
from lbsgd.tasks.task import Metric

Values = Mapping[str, float]
# Of the task, by name; the loss is always shown.
Metrics = Mapping[str, Metric]


class Progress(Protocol):
    """Shows how far a run is."""

    def begin(self, step: int) -> None:
        """Begins, where `step` updates were done before."""

    def show(self, step: int, epoch: float, values: Values) -> None:
        """Shows the metrics of an update."""

    def line(self, text: str) -> None:
        """Prints a line."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


def _short(values: Values, metrics: Metrics) -> str:
    texts = {"train_loss": "loss {:.3f}"}
    for name, metric in metrics.items():
        form = "{:.1f}%" if metric.unit == "%" else "{:.3g}"
        texts[f"train_{name}"] = f"{metric.words or name} {form}"
    texts |= {"learning_rate": "lr {:.4g}", "images_per_second": "{:,.0f} images/s"}
    return "  ".join(text.format(values[key]) for key, text in texts.items() if key in values)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class PlainProgress:
    """Prints lines, at most one every `seconds`."""

    def __init__(
        self,
        total: int,
        metrics: Metrics,
        seconds: float = 10.0,
        write: Callable[[str], None] | None = None,
    ) -> None:
        self._total, self._metrics, self._seconds = total, metrics, seconds
        self._write = write or functools.partial(print, flush=True)
        self._first: tuple[int, float] | None = None
        self._last = time.monotonic()

    def begin(self, step: int) -> None:
        pass

    def show(self, step: int, epoch: float, values: Values) -> None:
        now = time.monotonic()
        self._first = self._first or (step, now)
        if now - self._last < self._seconds:
            return
        self._last = now
        before, then = self._first
        left = ""
        if step > before:
            left = f"  {_duration((now - then) / (step - before) * (self._total - step))} left"
        self.line(
            f"epoch {epoch:.2f}  update {step}/{self._total}  {_short(values, self._metrics)}{left}"
        )

    def line(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        pass


class BarProgress:
    """Draws a bar on a terminal."""

    def __init__(self, total: int, metrics: Metrics) -> None:
        self._metrics = metrics
        rest = rich.table.Column(no_wrap=True, overflow="ellipsis", ratio=1)
        width = rich.console.Console(force_terminal=True).width
        self._bar = Bar(
            rich.progress.TextColumn("epoch {task.fields[epoch]:.1f}"),
            rich.progress.BarColumn(min(max(4, width - 76), 40)),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            # Last and of what width is left, so that on a narrow terminal it is cut.
            rich.progress.TextColumn("{task.fields[text]}", table_column=rest),
            total=total,
            epoch=0.0,
            text="",
        )

    def begin(self, step: int) -> None:
        self._bar.start(step, epoch=0.0, text="")

    def show(self, step: int, epoch: float, values: Values) -> None:
        text = (
            _short(values, self._metrics).replace("  ", " ").replace("images", "img")
        )  # 80 columns are enough
        self._bar.show(step, epoch=epoch, text=text)

    def line(self, text: str) -> None:
        self._bar.line(text)

    def close(self) -> None:
        self._bar.close()


class LoggedProgress:
    """Progress that is seen on the terminal, where this process speaks, and kept in its log."""

    def __init__(
        self, shown: Progress | None, log: Callable[[str], None], total: int, metrics: Metrics
    ) -> None:
        self._parts: list[Progress] = [PlainProgress(total, metrics, 60.0, log)]
        if shown:
            self._parts.append(shown)

    def begin(self, step: int) -> None:
        """Begins, where `step` updates were done before."""
        for part in self._parts:
            part.begin(step)

    def show(self, step: int, epoch: float, values: Values) -> None:
        for part in self._parts:
            part.show(step, epoch, values)

    def line(self, text: str) -> None:
        for part in self._parts if text else self._parts[1:]:  # no empty lines in the log
            part.line(text)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def open_progress(
    total: int,
    metrics: Metrics,
    log: Callable[[str], None],
    *,
    shown: bool = True,
    bar: bool = True,
) -> LoggedProgress:
    """Opens a bar on a terminal, lines elsewhere.

    Args:
      metrics: of the task in training, by name.
      log: writes a line into it.
      shown: whether anything is seen outside of the log.
      bar: whether there may be a bar.
    """
    seen: Progress | None = None
    if shown:
        drawn = bar and supports_progress_bar()
        seen = BarProgress(total, metrics) if drawn else PlainProgress(total, metrics)
    return LoggedProgress(seen, log, total, metrics)
