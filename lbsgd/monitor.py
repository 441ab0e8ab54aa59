"""What a run shows and leaves behind: metrics.jsonl, TensorBoard summaries, progress."""

import contextlib
import functools
import importlib.util
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import rich.console
import rich.progress
import rich.table

from lbsgd.errors import ConfigError, first_line
from lbsgd.figures import undisturbed
from lbsgd.streams import takes_bar

Values = Mapping[str, float]


class MetricsFile:
    """metrics.jsonl: one object a line with `step` (updates done), `epoch` and named values.

    What a full disk refuses waits in memory, to be written with the next line. diagnostics.jsonl is
    a file of this kind too; its values may be lists, or numbers by name.
    """

    def __init__(self, path: pathlib.Path, *, keep_until: int = 0, lists: bool = False) -> None:
        """Opens the file for appending, dropping what a run that goes on will write again.

        Args:
          keep_until: lines of later steps are dropped, as is a last line cut short.
          lists: whether values may be more than numbers.

        Raises:
          ConfigError: the file cannot be written, or is damaged.
        """
        self.kept = [line for line in read_metrics(path, lists) if line["step"] <= keep_until]
        self._path, self._waiting = path, b""
        try:
            # In one step, so that whatever happens the file is the one or the other.
            rewritten = path.with_suffix(".tmp")
            rewritten.write_text("".join(json.dumps(line) + "\n" for line in self.kept))
            rewritten.replace(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be written ({error.strerror or error}); make room there, or choose "
                "another --workdir"
            ) from error

    def write(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Appends a line; a number that is not finite becomes null, as JSON has no word for it."""
        line = json.dumps({"step": step, "epoch": round(epoch, 6), **_finite(values)}) + "\n"
        self._waiting += line.encode()
        with contextlib.suppress(OSError):  # `flush` tells
            self._write()

    def flush(self) -> str:
        """Brings all lines to the disk: "", or why that cannot be."""
        try:
            self._write()
            os.fsync(self._file.fileno())
            if not os.fstat(self._file.fileno()).st_nlink:
                return f"{self._path} was removed"
        except OSError as error:
            return f"{self._path} cannot be written ({error.strerror or error})"
        return ""

    def close(self) -> None:
        self._file.close()

    def _write(self) -> None:
        while self._waiting:
            # Of a line that is written in part only the rest waits.
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_finite(inside) for inside in value]
    return value if math.isfinite(value) else None


def read_metrics(path: pathlib.Path, lists: bool = False) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none if there is no file, without a last line cut short.

    Args:
      lists: whether values may be lists, or numbers by name, as in diagnostics.jsonl.

    Raises:
      ConfigError: a line that is not the last is damaged.
    """
    lines, damaged = _read(path, lists)
    if damaged:
        raise ConfigError(
            f"{path}, line {damaged[0]} is damaged; mend it or choose another --workdir"
        )
    return lines


def read_whole_lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], str]:
    """The lines of a metrics.jsonl that can be read; and "", or what is wrong with the others."""
    try:
        lines, damaged = _read(path, lists=False)
    except ConfigError as error:
        return [], str(error)
    if not damaged:
        return lines, ""
    more = f" and {len(damaged) - 1} more are" if len(damaged) > 1 else " is"
    return lines, f"{path}, line {damaged[0]}{more} damaged, and left out here"


def _read(path: pathlib.Path, lists: bool) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines, and the numbers of those that are damaged."""
    if not path.is_file():
        return [], []
    try:
        *whole, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from error
    lines, damaged = [], []
    for number, text in enumerate(whole, 1):
        try:
            lines.append(_checked(json.loads(text), lists))
        except (ValueError, RecursionError):
            damaged.append(number)
    return lines, damaged


def _checked(line: Any, lists: bool) -> dict[str, Any]:
    """A line as `MetricsFile` writes it, or ValueError."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise ValueError("no step")
    for value in line.values():
        inside = [value]
        if lists and isinstance(value, (list, dict)):
            inside = list(value.values()) if isinstance(value, dict) else value
        if not all(x is None or isinstance(x, (int, float)) for x in inside):
            raise ValueError("not a number")
    return line


class Summaries(Protocol):
    """Where scalars go to be looked at."""

    def write_scalars(self, step: int, scalars: Values) -> None: ...

    def close(self) -> None: ...


class NoSummaries:
    """Where tensorflow is missing."""

    def write_scalars(self, step: int, scalars: Values) -> None:
        pass

    def close(self) -> None:
        pass


class DispensableSummaries:
    """Summaries that end where they cannot be written, as on a full disk; training goes on."""

    def __init__(self, summaries: Summaries, say: Callable[[str], None]) -> None:
        self._summaries, self._say = summaries, say

    def write_scalars(self, step: int, scalars: Values) -> None:
        self._try(lambda: self._summaries.write_scalars(step, scalars))

    def close(self) -> None:
        self._try(self._summaries.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # tensorflow's own, which cannot be named without it
            self._summaries = NoSummaries()
            reason = first_line(error).rpartition("; ")[2]  # after names of its kernels
            self._say(f"TensorBoard summaries end here, they cannot be written ({reason})")


def open_summaries(folder: pathlib.Path, say: Callable[[str], None]) -> Summaries:
    """clu's TensorBoard writer, or a writer of nothing and a line that says why."""
    missing = [m for m in ("tensorflow", "tensorboard") if importlib.util.find_spec(m) is None]
    if missing:
        say(
            f"TensorBoard summaries are off ({missing[0]} is not installed); "
            "pip install 'lbsgd[tensorboard]' turns them on"
        )
        return NoSummaries()
    try:
        with undisturbed():  # for tensorflow imports matplotlib
            from clu import metric_writers
        return DispensableSummaries(metric_writers.SummaryWriter(str(folder)), say)
    except Exception as error:
        say(f"TensorBoard summaries are off ({first_line(error)})")
        return NoSummaries()


class Progress(Protocol):
    """Shows how far a run is."""

    def begin(self, step: int) -> None: ...

    def show(self, step: int, epoch: float, values: Values) -> None: ...

    def line(self, text: str) -> None: ...

    def close(self) -> None: ...


def _short(values: Values) -> str:
    names = {
        "train_loss": "loss {:.3f}",
        "train_error": "error {:.1f}%",
        "learning_rate": "lr {:.4g}",
        "images_per_second": "{:,.0f} images/s",
    }
    return "  ".join(text.format(values[key]) for key, text in names.items() if key in values)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class PlainProgress:
    """Lines, at most one every `seconds`."""

    def __init__(
        self, total: int, seconds: float = 10.0, write: Callable[[str], None] | None = None
    ) -> None:
        self._total, self._seconds = total, seconds
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
        self.line(f"epoch {epoch:.2f}  update {step}/{self._total}  {_short(values)}{left}")

    def line(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        pass


class BarProgress:
    """A bar on a terminal."""

    def __init__(self, total: int) -> None:
        console = rich.console.Console(highlight=False, force_terminal=True)
        metrics = rich.table.Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("epoch {task.fields[epoch]:.1f}"),
            rich.progress.BarColumn(min(max(4, console.width - 76), 40)),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            # Last and of what width is left, so that on a narrow terminal it is cut.
            rich.progress.TextColumn("{task.fields[text]}", table_column=metrics),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total, epoch=0.0, text="")
        self._bar.start()

    def begin(self, step: int) -> None:
        self._bar.reset(self._task, completed=step, epoch=0.0, text="")

    def show(self, step: int, epoch: float, values: Values) -> None:
        text = _short(values).replace("  ", " ").replace("images", "img")  # 80 columns are enough
        self._bar.update(self._task, completed=step, epoch=epoch, text=text)

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


class LoggedProgress:
    """Progress that is seen on the terminal, where this process speaks, and kept in its log."""

    def __init__(self, shown: Progress | None, log: Callable[[str], None], total: int) -> None:
        self._parts: list[Progress] = [PlainProgress(total, 60.0, log)]
        if shown:
            self._parts.append(shown)

    def begin(self, step: int) -> None:
        """Training goes on after `step` updates."""
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
    total: int, log: Callable[[str], None], process: int = 0, processes: int = 1
) -> LoggedProgress:
    """A bar on a terminal, lines elsewhere; but for process 0 only what goes to the log.

    Of several processes none draws a bar: what starts them may give each a terminal to fill.

    Args:
      log: writes a line into it.
    """
    shown: Progress | None = None
    if process == 0:
        bar = processes == 1 and takes_bar()
        shown = BarProgress(total) if bar else PlainProgress(total)
    return LoggedProgress(shown, log, total)


class Stopwatch:
    """Time spent training: it stands still while evaluating, compiling or saving."""

    def __init__(self) -> None:
        self._before, self._since = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._since

    def stop(self) -> None:
        self._before = self.seconds

    def start(self) -> None:
        self._since = time.monotonic()


def evaluations(metrics: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines that hold an evaluation."""
    return (line for line in metrics if line.get("val_error") is not None)
