"""Pictures of what a run measured of itself, over its epochs.

A picture is made from lines of metrics.jsonl and diagnostics.jsonl, and is None where they hold
nothing for it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Line = dict[str, Any]

# Quantiles of cosines that are drawn, from the widest band to the narrowest.
BANDS = ((0.05, 0.95), (0.25, 0.75))
LAYER_PANELS = {
    "gradient_norm": "gradient norm",
    "parameter_norm": "parameter norm",
    "update_norm": "update norm",
    "trust_ratio": "trust ratio",
}
# More arrays than this have no legend, but for the first and the last.
MOST_NAMED = 12


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 2.8 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for panel in axes:
        panel.grid(alpha=0.3)
    axes[-1].set_xlabel("epochs")
    return figure, axes


def _with(lines: Iterable[Line], key: str, kind: type = object) -> list[Line]:
    """The lines that hold a `key` of this kind."""
    both = (line for line in lines if "epoch" in line and key in line)
    return [line for line in both if isinstance(line[key], kind)]


def _numbers(values: Iterable[float | None]) -> list[float]:
    """Null, as a number that was not finite is written, is a gap."""
    return [math.nan if value is None else value for value in values]


def noise_scale_picture(metrics: Sequence[Line]) -> Any:
    """The noise scale with the batch size beside it; below, what it is the ratio of."""
    lines = _with(metrics, "gradient_noise_scale")
    if not lines:
        return None
    figure, (scale, parts) = _figure(2)
    epochs = [line["epoch"] for line in lines]
    for key, label, style in (
        ("gradient_noise_scale", "gradient noise scale", {"color": "tab:blue"}),
        ("batch_size", "batch size", {"color": "tab:gray", "linestyle": "--"}),
    ):
        scale.plot(epochs, _numbers(line.get(key) for line in lines), label=label, **style)
    scale.set(ylabel="examples", yscale="log", title="Gradient noise scale")
    for key, label in (("gradient_square", "|G|²"), ("gradient_covariance_trace", "tr(Σ)")):
        # A single estimate of |G|^2 may be negative, which a logarithm cannot show.
        positive = [x if x > 0 else math.nan for x in _numbers(line.get(key) for line in lines)]
        parts.plot(epochs, positive, ".", markersize=3, label=f"{label}, single estimates")
    parts.set(yscale="log")
    for panel in (scale, parts):
        panel.legend(frameon=False)
    return figure


def cosines_picture(lists: Sequence[Line]) -> Any:
    """Least cosine and distribution over epochs: of pairs of minibatches, of workers."""
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
        panel.legend(frameon=False)
    return figure


def _draw_distribution(panel: Any, epochs: list[float], cosines: list[list[float]]) -> None:
    # Two gradients of 0 have no cosine.
    known = [np.array([c for c in each if not math.isnan(c)] or [math.nan]) for each in cosines]
    for low, high in BANDS:
        panel.fill_between(
            epochs,
            [np.quantile(each, low) for each in known],
            [np.quantile(each, high) for each in known],
            color="tab:blue",
            alpha=0.2,
            linewidth=0,
            label=f"{low:.0%} to {high:.0%}",
        )
    middle, least = [np.median(each) for each in known], [each.min() for each in known]
    panel.plot(epochs, middle, color="tab:blue", label="median")
    panel.plot(epochs, least, ".-", color="tab:red", linewidth=1, label="minimum")
    panel.axhline(0.0, color="black", linewidth=0.5)


def layers_picture(lists: Sequence[Line]) -> Any:
    """Norms of gradient, parameters and update of each parameter array, and trust ratios."""
    shown = {key: title for key, title in LAYER_PANELS.items() if _with(lists, key, dict)}
    if not shown:
        return None
    from matplotlib import colormaps

    figure, axes = _figure(len(shown))
    for panel, (key, title) in zip(axes, shown.items()):
        lines = _with(lists, key, dict)
        epochs = [line["epoch"] for line in lines]
        names = list(lines[-1][key])
        for i, name in enumerate(names):
            label = name if len(names) <= MOST_NAMED or i in (0, len(names) - 1) else None
            values = _numbers(line[key].get(name) for line in lines)
            color = colormaps["viridis"](i / max(1, len(names) - 1))
            panel.plot(epochs, values, color=color, linewidth=1, label=label)
        panel.set(ylabel=title, yscale="log")
    axes[0].set_title("Parameter arrays in the order of their names, from dark to bright")
    axes[0].legend(frameon=False, fontsize="x-small")
    return figure
