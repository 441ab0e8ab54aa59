"""The curves and final values of results as traces of plotly, whose colours the page gives them.

Each has `row`, the index of its row, and `kind`, by which the page chooses.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lbsgd.experiments.figures import is_log, of_training, series
from lbsgd.experiments.results import Curve, Results, RowResults
from lbsgd.experiments.statistics import summarize
from lbsgd.experiments.table import short_names
from lbsgd.system.text import printable

# On light and on dark paper, for people who see few colours too (after Okabe and Ito).
COLORS = {
    "light": ["#0072b2", "#d55e00", "#009e73", "#b5519b", "#b8860b", "#3fa0d8", "#7a7a7a"],
    "dark": ["#56b4e9", "#ff8c42", "#2fd3a0", "#e79bc6", "#f5c242", "#a8dcff", "#b0b0b0"],
}
Trace = dict[str, Any]


def metrics(results: Results) -> dict[str, dict[str, Any]]:
    """Makes the curves of each metric, the one that the report is about first.

    Those of training and of evaluations that have the same name are one.
    """
    names = dict.fromkeys(name for run in results.runs() for name in run.curves)
    bases = dict.fromkeys(name.removeprefix("train_").removeprefix("val_") for name in names)
    headline = results.metric.removeprefix("val_")
    order = sorted(bases, key=lambda base: (base != headline, f"val_{base}" not in names, base))
    return {base: _of_metric(results, base) for base in order}


def _of_metric(results: Results, base: str) -> dict[str, Any]:
    traces = [
        trace for i, row in enumerate(results.rows) for trace in _of_row(results, i, row, base)
    ]
    described = results.describe(f"val_{base}")
    label = str(described._replace(words=described.words.removeprefix("validation ")))
    values = [y for trace in traces if trace["kind"] != "band" for y in trace["y"] if y is not None]
    decades = math.log10(max(values) / min(values)) if is_log(values) else 0.0
    return {"label": label, "log": is_log(values), "decades": decades, "traces": traces}


def _of_row(results: Results, index: int, row: RowResults, base: str) -> list[Trace]:
    """Makes the mean curves of a row, their band, and the curves of its runs."""
    validation, spread = row.curve(f"val_{base}"), row.spread(f"val_{base}")
    training = row.curve(f"train_{base}")
    if not len(training.epochs):  # as of the learning rate
        training = row.curve(base)
    common = {"row": index, "name": _escaped(row.name), "legendgroup": str(index)}
    traces = [_band(validation, spread)] if len(validation.epochs) else []
    if len(training.epochs):
        traces.append({"kind": "training", **_line(training, "training")})
    if len(validation.epochs):
        dashed = {"dash": "dash", "width": 1.8}
        traces.append({"kind": "mean", **_line(validation, "validation"), "line": dashed})
    for run in row.runs:
        curve = run.curves.get(f"val_{base}", run.curves.get(of_training(base)))
        curve = curve if curve is not None else run.curves.get(base)
        if curve is not None:
            note = f"seed {run.seed}, {run.status}"
            thin = {"line": {"width": 1}, "opacity": 0.6}
            traces.append({"kind": "run", **_line(curve, note), **thin})
    return [{**common, "type": "scatter", **trace} for trace in traces]


def _line(curve: Curve, note: str) -> Trace:
    hover = f"%{{y:.5g}} at epoch %{{x:.4g}}, {note}<extra>%{{fullData.name}}</extra>"
    few = len(curve.epochs) <= 30
    return {
        "x": _rounded(curve.epochs),
        "y": _rounded(curve.values),
        "mode": "lines+markers" if few else "lines",
        "marker": {"size": 4},
        "hovertemplate": hover,
    }


def _band(mean: Curve, spread: Curve) -> Trace:
    """Makes the area of one standard deviation around the mean, there and back."""
    low, high = mean.values - spread.values, mean.values + spread.values
    finite = np.isfinite(low)
    x, low, high = mean.epochs[finite], low[finite], high[finite]
    return {
        "kind": "band",
        "x": _rounded(np.concatenate([x, x[::-1]])),
        "y": _rounded(np.concatenate([high, low[::-1]])),
        "fill": "toself",
        "mode": "lines",
        "hoverinfo": "skip",
    }


def final_traces(results: Results) -> list[Trace]:
    """Makes the final values of the runs as dots, and of each row the mean with its spread."""
    traces = []
    for index, row in enumerate(results.rows):
        runs = [run for run in row.runs if results.metric in run.finals]
        if not runs:
            continue
        summary = summarize(row.finals(results.metric))
        common = {"row": index, "type": "scatter", "mode": "markers", "name": _escaped(row.name)}
        dots = {
            "x": [run.finals[results.metric] for run in runs],
            "text": [f"seed {run.seed}" for run in runs],
            "marker": {"size": 7, "opacity": 0.55},
            "hovertemplate": "%{x:.5g}, %{text}<extra>%{fullData.name}</extra>",
        }
        unit = results.describe(results.metric).unit
        mean = {
            "x": [summary.mean],
            "marker": {"size": 11, "symbol": "diamond"},
            "error_x": {"array": [_number(summary.std) or 0.0], "thickness": 2, "width": 5},
            "hovertemplate": f"{summary.format(unit)}, n = {summary.n}"
            "<extra>%{fullData.name}</extra>",
        }
        traces += [{**common, "kind": "run", **dots}, {**common, "kind": "mean", **mean}]
    return traces


def against(results: Results) -> dict[str, Any]:
    """Makes the final values against a number of the config; {} where there is nothing to draw."""
    key = results.settings.against
    lines = series(results) if key else {}
    if not lines:
        return {}
    (label,) = short_names([key]).values()
    ticks = sorted({point.x for line in lines.values() for point in line})
    return {
        "label": label.replace("_", " "),
        "ticks": ticks,
        "log": ticks[0] > 0,
        "traces": [
            {
                "row": index,
                "type": "scatter",
                "kind": "mean",
                "name": _escaped(words or "as the config file has it"),
                "x": [point.x for point in line],
                "y": [point.mean for point in line],
                "error_y": {"array": [point.bar for point in line], "thickness": 1.5, "width": 5},
                "text": [_escaped(point.name) for point in line],
                "mode": "lines+markers",
                "marker": {"size": 8},
                "hovertemplate": "%{y:.5g}<extra>%{text}</extra>",
            }
            for index, (words, line) in enumerate(lines.items())
        ],
    }


def _escaped(text: str) -> str:
    """Escapes a text for plotly, which reads a little of HTML."""
    return html.escape(printable(text), quote=False)


def _rounded(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Shortens numbers to what a picture can show."""
    return [None if (n := _number(v)) is None else float(f"{n:.6g}") for v in values]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
