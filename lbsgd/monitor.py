"""What a run shows and leaves behind: metrics.jsonl, TensorBoard summaries, progress, curves."""

import importlib.util
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import rich.console
import rich.progress

from lbsgd.errors import ConfigError

Values = Mapping[str, float]


class MetricsFile:
    """metrics.jsonl: one object a line with `step` (updates done), `epoch` and named values."""

    def __init__(self, path: pathlib.Path, *, keep_until: int = 0) -> None:
        """Opens the file for appending, dropping what a run that goes on will write again.

        Args:
          keep_until: lines of later steps are dropped, as is a last line cut short.

        Raises:
          ConfigError: the file cannot be written, or is damaged.
        """
        lines = read_metrics(path)
        kept = [line for line in lines if line["step"] <= keep_until]
        try:
            # In one step, so that whatever happens the file is the one or the other.
            rewritten = path.with_suffix(".tmp")
            rewritten.write_text("".join(json.dumps(line) + "\n" for line in kept))
            rewritten.replace(path)
            self._file = path.open("a", buffering=1)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror or error})") from error

    def write(self, step: int, epoch: float, values: Values) -> None:
        """Appends a line; a value that is not finite becomes null, as JSON has no word for it."""
        numbers = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 6), **numbers}) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none if there is no file, without a last line cut short.

    Raises:
      ConfigError: a line that is not the last is damaged.
    """
    if not path.is_file():
        return []
    *whole, _ = path.read_text().split("\n")
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number} is damaged; mend it or choose another --workdir"
            ) from error
    return lines


class NoSummaries:
    """Where tensorflow is missing."""

    def write_scalars(self, step: int, scalars: Values) -> None:
        pass

    def close(self) -> None:
        pass


def open_summaries(folder: pathlib.Path) -> tuple[Any, str]:
    """clu's TensorBoard writer and "", or a writer of nothing and a line that says why."""
    missing = [m for m in ("tensorflow", "tensorboard") if importlib.util.find_spec(m) is None]
    if missing:
        return NoSummaries(), (
            f"TensorBoard summaries are off ({missing[0]} is not installed); "
            "pip install 'lbsgd[tensorboard]' turns them on"
        )
    from clu import metric_writers  # imports tensorflow

    return metric_writers.SummaryWriter(str(folder)), ""


class Progress(Protocol):
    """Shows how far a run is."""

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

    def __init__(self, total: int, seconds: float = 10.0) -> None:
        self._total, self._seconds = total, seconds
        self._first: tuple[int, float] | None = None
        self._last = time.monotonic()

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
        print(text, flush=True)

    def close(self) -> None:
        pass


class BarProgress:
    """A bar on a terminal."""

    def __init__(self, total: int, start: int) -> None:
        console = rich.console.Console(highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("epoch {task.fields[epoch]:.1f}"),
            rich.progress.BarColumn(min(max(4, console.width - 76), 40)),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
            rich.progress.TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=total, completed=start, epoch=0.0, text="")
        self._bar.start()

    def show(self, step: int, epoch: float, values: Values) -> None:
        text = _short(values).replace("  ", " ").replace("images", "img")  # 80 columns are enough
        self._bar.update(self._task, completed=step, epoch=epoch, text=text)

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


class Silent:
    """For the processes that do not speak."""

    def show(self, step: int, epoch: float, values: Values) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def open_progress(total: int, start: int, *, speaks: bool) -> Progress:
    """A bar on a terminal, lines elsewhere, nothing where this process does not speak."""
    if not speaks:
        return Silent()
    return BarProgress(total, start) if sys.stdout.isatty() else PlainProgress(total)


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


def final_error(metrics: list[dict[str, Any]], last: int = 5) -> float:
    """Median validation error (%) of the last 5 evaluations (Goyal et al., section 5.1)."""
    return statistics.median([line["val_error"] for line in evaluations(metrics)][-last:])


def _means_between_evaluations(metrics: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Training error averaged from one evaluation to the next, at the epoch where it ends."""
    epochs, means, since = [], [], []
    for line in metrics:
        if line.get("train_error") is not None:
            since.append(line["train_error"])
        if line.get("val_error") is not None and since:
            epochs.append(line["epoch"])
            means.append(statistics.fmean(since))
            since = []
    return epochs, means


def draw_curves(metrics: list[dict[str, Any]], path: pathlib.Path, title: str) -> None:
    """Training and validation error against epochs, learning rate below, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    errors, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    validation = list(evaluations(metrics))
    errors.plot(*_means_between_evaluations(metrics), color="tab:blue", label="training")
    errors.plot(
        [line["epoch"] for line in validation],
        [line["val_error"] for line in validation],
        color="tab:red",
        label="validation",
    )
    errors.set(ylabel="error %", title=title)
    errors.set_ylim(bottom=0)
    errors.grid(alpha=0.3)
    errors.legend(frameon=False)
    with_rate = [line for line in metrics if line.get("learning_rate") is not None]
    rates.plot(
        [line["epoch"] for line in with_rate],
        [line["learning_rate"] for line in with_rate],
        color="tab:gray",
    )
    rates.set(xlabel="epochs", ylabel="learning rate")
    rates.set_ylim(bottom=0)
    rates.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
