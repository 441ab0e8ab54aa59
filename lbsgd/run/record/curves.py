"""The curves of a run as a picture: its metric, learning rate and batch size against epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lbsgd.run.record.metrics import evaluations, training_means
from lbsgd.system.errors import first_line
from lbsgd.system.figures import new_figure, save_figure
from lbsgd.system.files import AnyPath
from lbsgd.tasks.task import Metric, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More points than these are a line without markers.
MOST_MARKERS = 30
# Of a decade, on the axis of errors; more of them where that is not a decade long.
TICKS, MORE_TICKS = (1, 2, 5), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)


class Schedule(NamedTuple):
    """Holds the rate and the batch size from each epoch up to the next.

    Attributes:
      epochs: one more than there are of the others, for the end.
    """

    epochs: Sequence[float]
    learning_rate: Sequence[float]
    batch_size: Sequence[int]


def draw(
    metrics: list[dict[str, Any]], path: AnyPath, title: str, schedule: Schedule, task: Task
) -> str:
    """Writes the curves as a PNG: "", or why that cannot be. No run fails of its picture."""
    try:
        save_figure(curves(metrics, title, schedule, task), path)
    except OSError as error:
        return f"{path} cannot be written ({error.strerror or error})"
    except Exception as error:  # of matplotlib, which may be anything
        return f"{path} cannot be drawn ({type(error).__name__}: {first_line(error)})"
    return ""


def curves(metrics: list[dict[str, Any]], title: str, schedule: Schedule, task: Task) -> "Figure":
    """Plots the headline metric, learning rate below, and the batch size where it changes."""
    figure = new_figure(7, 5)
    strips = ("learning_rate", "batch_size")[: 2 if len(set(schedule.batch_size)) > 1 else 1]
    ratios = (3, *(1 for _ in strips))
    above, *below = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    name = task.headline
    lines = [line for line in evaluations(metrics) if line.get(f"val_{name}") is not None]
    validation = [(line["epoch"], line[f"val_{name}"]) for line in lines]
    # There is none in training of what only an evaluation can tell.
    _draw_metric(above, training_means(metrics, f"train_{name}"), validation, name, task.best)
    above.set_title(title)
    for panel, key in zip(below, strips):
        levels = getattr(schedule, key)
        panel.plot(
            schedule.epochs, [*levels, *levels[-1:]], color="tab:gray", drawstyle="steps-post"
        )
        panel.set(ylabel=key.replace("_", " "))
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    below[-1].set_xlabel("epochs")
    return figure


def _draw_metric(
    panel: Any,
    training: list[tuple[float, float]],
    validation: list[tuple[float, float]],
    name: str,
    metric: Metric,
) -> None:
    """Plots a metric of training and validation; of one that falls, small values can be read."""
    for points, set_, color in (
        (training, "training", "tab:blue"),
        (validation, "validation", "tab:red"),
    ):
        if not points:
            continue
        epochs, values = zip(*points)
        marker = "o" if len(points) == 1 else "." if len(points) <= MOST_MARKERS else ""
        label = f"{set_}, {metric.format(values[-1])} at the end"
        panel.plot(epochs, values, color=color, marker=marker, label=label)
    values_of_both = [value for _, value in training + validation]
    if not metric.rises and min(values_of_both, default=0) >= 0:
        _scale(panel, values_of_both)
    panel.set_ylabel(f"{metric.words or name} {metric.unit}".strip())
    panel.grid(alpha=0.3)
    if training or validation:
        panel.legend(frameon=False)


def _scale(panel: Any, values: list[float]) -> None:
    """Scales the axis logarithmically; with errors of 0 it is linear below the least other."""
    positive = [value for value in values if value > 0]
    if not positive:
        panel.set_ylim(0, 1)
        return
    least, most = min(positive), max(positive)
    bottom, top = 0.8 * least, 1.25 * most
    mantissas = TICKS if most > 10 * least else MORE_TICKS
    ticks = [m * 10.0**power for power in range(-6, 3) for m in mantissas]
    ticks = [tick for tick in ticks if bottom <= tick <= min(top, 100.0)]
    if min(values) > 0:
        panel.set_yscale("log")
    else:
        panel.set_yscale("symlog", linthresh=least, linscale=0.3)
        bottom, ticks = -0.1 * least, [0.0, *ticks]
    panel.set_ylim(bottom, top)
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
