"""The curves of a run as a picture: errors, learning rate and batch size against epochs."""

import pathlib
import statistics
from typing import Any

from lbsgd.errors import first_line
from lbsgd.figures import new_figure
from lbsgd.monitor import evaluations


def draw(metrics: list[dict[str, Any]], path: pathlib.Path, title: str) -> str:
    """Writes the curves as a PNG: "", or why that cannot be. No run fails of its picture."""
    try:
        curves(metrics, title).savefig(path, dpi=120)
    except OSError as error:
        return f"{path} cannot be written ({error.strerror or error})"
    except Exception as error:  # of matplotlib, which may be anything
        return f"{path} cannot be drawn ({type(error).__name__}: {first_line(error)})"
    return ""


def curves(metrics: list[dict[str, Any]], title: str) -> Any:
    """Errors against epochs, learning rate below, and the batch size where it changes."""
    figure = new_figure(7, 5)
    sizes = {line["batch_size"] for line in metrics if line.get("batch_size") is not None}
    strips = ("learning_rate", "batch_size")[: 2 if len(sizes) > 1 else 1]
    ratios = (3, *(1 for _ in strips))
    errors, *below = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
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
    for panel, key in zip(below, strips):
        lines = [line for line in metrics if line.get(key) is not None]
        points = [line["epoch"] for line in lines], [line[key] for line in lines]
        # A line has the size of the update that ended there.
        style = "steps-pre" if key == "batch_size" else "default"
        panel.plot(*points, color="tab:gray", drawstyle=style)
        panel.set(ylabel=key.replace("_", " "))
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    below[-1].set_xlabel("epochs")
    return figure


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
