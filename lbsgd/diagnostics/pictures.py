"""Draws what a run measured of itself, over its epochs.

A picture is made from lines of metrics.jsonl and diagnostics.jsonl, and is None where they hold
nothing for it. Each measurement has a marker, so that a single one is seen.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lbsgd.diagnostics import noise_scale
from lbsgd.system.figures import new_figure

Line = dict[str, Any]

# Quantiles of cosines that are drawn, from the widest band to the narrowest, with their colours.
BANDS = ((0.05, 0.95, "#c6dbef"), (0.25, 0.75, "#6baed6"))
LAYER_PANELS = {
    "gradient_norm": "gradient norm",
    "parameter_norm": "parameter norm",
    "update_norm": "update norm",
    "trust_ratio": "trust ratio",
}


def _figure(panels: int, width: float = 8.0) -> tuple[Any, Any]:
    """Makes a figure of panels one above the other, epochs below the last."""
    figure = new_figure(width, 1 + 2.8 * panels)
    # Unsqueezed: a single panel would come bare, not in an array.
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for panel in axes:
        panel.grid(alpha=0.3)
    axes[-1].set_xlabel("epochs")
    return figure, axes


def _beside(panel: Any) -> None:
    """Draws the legend where it hides no data."""
    panel.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _with(lines: Iterable[Line], key: str, kind: type = object) -> list[Line]:
    """Selects the lines that hold a `key` of this kind."""
    both = (line for line in lines if "epoch" in line and key in line)
    return [line for line in both if isinstance(line[key], kind)]


def _numbers(values: Iterable[float | None]) -> list[float]:
    """Converts null, as a number that was not finite is written, to a gap."""
    return [math.nan if value is None else value for value in values]


def _plot(panel: Any, epochs: list[float], values: list[float], style: str, **more: Any) -> None:
    """Draws a line with its label, if any of it is there."""
    # A line of gaps alone would still be in the legend.
    if not all(map(math.isnan, values)):
        panel.plot(epochs, values, style, **more)


# --- the noise scale ---------------------------------------------------------------------------


def noise_scale_picture(metrics: Sequence[Line]) -> Any:
    """Draws the noise scale with the batch size beside it; below, what it is the ratio of."""
    lines = _with(metrics, noise_scale.SQUARE)
    if not lines:
        return None
    figure, (scale, squares, traces) = _figure(3, 9.0)
    _draw_scale(scale, lines)
    _draw_batch_size(scale, metrics)
    keys = (noise_scale.SQUARE, noise_scale.MEAN_SQUARE)
    _draw_estimates(squares, lines, *keys, "|G|²")
    keys = (noise_scale.TRACE, noise_scale.MEAN_TRACE)
    _draw_estimates(traces, lines, *keys, "tr(Σ)")
    scale.set(ylabel="examples", yscale="log", title="Gradient noise scale")
    for panel in (scale, squares, traces):
        _beside(panel)
    return figure


def _draw_scale(panel: Any, lines: Sequence[Line]) -> None:
    """Draws the noise scale where |G|² is clearly positive; elsewhere what it is at least."""
    keys = (noise_scale.MEAN_SQUARE, noise_scale.MEAN_TRACE, noise_scale.ERROR)
    squares, traces, errors = (_numbers(line.get(key) for line in lines) for key in keys)
    # By the same class as a run's advice, so that both call the same measurements known.
    averages = [
        noise_scale.Average(noise_scale.Estimate(square, trace), error)
        for square, trace, error in zip(squares, traces, errors)
    ]
    epochs = [line["epoch"] for line in lines]
    known = [math.isfinite(average.most) for average in averages]

    def where(there: Iterable[bool], values: Iterable[float]) -> list[float]:
        return [x if y and math.isfinite(x) else math.nan for x, y in zip(values, there)]

    least = [average.least for average in averages]
    ends = (where(known, least), where(known, (average.most for average in averages)))
    if sum(known) > 1:
        panel.fill_between(epochs, *ends, color="#c6dbef", label="two standard errors")
    ratios = where(known, (average.mean.noise_scale for average in averages))
    _plot(panel, epochs, ratios, ".-", color="tab:blue", label="gradient noise scale")
    bounds = where((not x for x in known), least)
    _plot(panel, epochs, bounds, "^", color="tab:blue", alpha=0.5, label="at least")
    # Of a single measurement there is no error.
    alone = where((math.isnan(error) for error in errors), (a.mean.noise_scale for a in averages))
    _plot(panel, epochs, alone, "x", color="tab:blue", label="of one measurement")


def _draw_batch_size(panel: Any, metrics: Sequence[Line]) -> None:
    """Draws the batch size in steps: a line holds the size of the update that ended there."""
    sized = [line for line in _with(metrics, "batch_size") if line["batch_size"] is not None]
    epochs, sizes = [li["epoch"] for li in sized], [li["batch_size"] for li in sized]
    # A line of steps needs two sizes; one alone would draw nothing without a marker.
    style = {"color": "tab:gray", "linestyle": "--", "marker": "." if len(sized) == 1 else None}
    panel.plot(epochs, sizes, drawstyle="steps-pre", label="batch size", **style)


def _draw_estimates(panel: Any, lines: Sequence[Line], single: str, mean: str, name: str) -> None:
    """Draws single estimates, and their average over the window."""
    epochs = [line["epoch"] for line in lines]
    values = _numbers(line.get(single) for line in lines)
    negative = sum(value < 0 for value in values)
    label = "single estimates"
    if negative:  # which a logarithm cannot show
        label += f",\n{negative} of {len(values)} negative, not drawn"
    averages = _numbers(line.get(mean) for line in lines)
    for numbers, style, text, color in (
        (averages, ".-", "average of the window", "tab:red"),
        (values, "x", label, "tab:orange"),
    ):
        positive = [x if x > 0 else math.nan for x in numbers]
        _plot(panel, epochs, positive, style, color=color, markersize=4, label=text)
    panel.set(ylabel=name, yscale="log")


# --- cosines -----------------------------------------------------------------------------------


def cosines_picture(lists: Sequence[Line]) -> Any:
    """Draws least cosine and distribution over epochs: of pairs of minibatches, of workers."""
    kinds = {
        "confusion_cosines": "Gradient confusion: pairs of minibatches",
        "worker_cosines": "Neighbouring workers",
    }
    shown = {key: title for key, title in kinds.items() if _with(lists, key, list)}
    if not shown:
        return None
    figure, axes = _figure(len(shown))
    for panel, (key, title) in zip(axes, shown.items()):
        lines = _with(lists, key, list)
        epochs = [line["epoch"] for line in lines]
        _draw_distribution(panel, epochs, [_numbers(line[key]) for line in lines])
        panel.set(ylabel="cosine", title=title)
        _beside(panel)
    return figure


def _draw_distribution(panel: Any, epochs: list[float], cosines: list[list[float]]) -> None:
    """Draws bands of quantiles, the median and the minimum of each measurement's cosines."""
    # Two gradients of 0 have no cosine.
    known = [np.array([c for c in each if not math.isnan(c)] or [math.nan]) for each in cosines]
    for low, high, color in BANDS:
        ends = [[np.quantile(each, q) for each in known] for q in (low, high)]
        label = f"{low:.0%} to {high:.0%}"
        if len(epochs) > 1:
            panel.fill_between(epochs, *ends, color=color, linewidth=0, label=label)
        else:  # a band without width is not seen
            panel.vlines(epochs, *ends, color=color, linewidth=20, label=label)
    middle, least = [np.median(each) for each in known], [each.min() for each in known]
    panel.plot(epochs, middle, ".-", color="#08306b", label="median")
    panel.plot(epochs, least, ".-", color="tab:red", linewidth=1, label="minimum")
    panel.axhline(0.0, color="black", linewidth=0.5)


# --- layers ------------------------------------------------------------------------------------


def layers_picture(lists: Sequence[Line]) -> Any:
    """Draws norms of gradient, parameters and update of each parameter array, and trust ratios.

    The colour is the place of the array in the network; of each panel the arrays that end lowest
    and highest are named.
    """
    shown = {key: title for key, title in LAYER_PANELS.items() if _with(lists, key, dict)}
    if not shown:
        return None
    figure, axes = _figure(len(shown), 10.0)
    names = _by_depth({name for key in shown for li in _with(lists, key, dict) for name in li[key]})
    for panel, (key, title) in zip(axes, shown.items()):
        lines = _with(lists, key, dict)
        values = {name: _numbers(line[key].get(name) for line in lines) for name in names}
        if key == "trust_ratio":
            values = _scaled(values)
            title += f"\n({len(values)} of {len(names)} arrays have one)"
        _draw_layers(panel, [line["epoch"] for line in lines], values, names)
        panel.set(ylabel=title, yscale="log")
    _draw_colours(figure, axes, names)
    axes[0].set_title("Parameter arrays; lowest and highest at the end")
    return figure


def _by_depth(names: Iterable[str]) -> list[str]:
    """Sorts names from the input on: the stem before all, the classifier last.

    Other names come in between, numbers in them as numbers.
    """

    def place(name: str) -> tuple[int, list[tuple[int, str]]]:
        parts = re.findall(r"\d+|\D+", name)
        # Pairs, since an int and a str cannot be compared.
        natural = [(int(x), "") if x.isdigit() else (-1, x) for x in parts]
        return (name.startswith("classifier") - name.startswith("stem"), natural)

    return sorted(names, key=place)


def _scaled(values: dict[str, list[float]]) -> dict[str, list[float]]:
    """Leaves out the arrays that have no trust ratio: theirs is always written as 1."""
    return {
        name: numbers
        for name, numbers in values.items()
        if not all(x == 1 or math.isnan(x) for x in numbers)
    }


def _draw_layers(
    panel: Any, epochs: list[float], values: dict[str, list[float]], names: list[str]
) -> None:
    """Draws a line for each array, and names those that end lowest and highest."""
    from matplotlib import colormaps

    for name, numbers in values.items():
        # By the place among all arrays, so that a colour means the same in every panel.
        color = colormaps["viridis"](names.index(name) / max(1, len(names) - 1))
        panel.plot(epochs, numbers, ".-", markersize=3, linewidth=1, color=color, label=name)
    # A gap, or 0, has no place on a logarithmic axis.
    last = {name: numbers[-1] for name, numbers in values.items() if numbers[-1] > 0}
    if not last:
        return
    for name in dict.fromkeys((max(last, key=last.__getitem__), min(last, key=last.__getitem__))):
        panel.annotate(
            name,
            (epochs[-1], last[name]),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize="x-small",
            va="center",
            annotation_clip=False,
        )


def _draw_colours(figure: Any, axes: Any, names: list[str]) -> None:
    """Draws the scale of colours, with some of the names."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(0, max(1, len(names) - 1)), "viridis")
    bar = figure.colorbar(colours, ax=list(axes), aspect=60, pad=0.02)
    ticks = sorted({round(x) for x in np.linspace(0, len(names) - 1, min(len(names), 25))})
    bar.set_ticks(ticks, labels=[names[i] for i in ticks], fontsize="x-small")
    bar.ax.invert_yaxis()
