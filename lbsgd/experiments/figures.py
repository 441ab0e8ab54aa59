"""The pictures of a report, as the paper has them: curves laid over each other, and final values.

Curves are of training, solid, and of validation, dashed; final values have error bars of 2 standard
deviations, as in Figure 1 of Goyal et al. 2017.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lbsgd.experiments.outcome import Status
from lbsgd.experiments.results import Results, RowResults
from lbsgd.experiments.statistics import summarize
from lbsgd.experiments.sweep import Row
from lbsgd.experiments.table import short_names, show, value_of
from lbsgd.system.figures import new_figure, save_figure
from lbsgd.system.files import AnyPath
from lbsgd.system.text import is_number, printable, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that people tell apart, also those who see few (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
# An axis that spans more than this is logarithmic.
LOG_SPAN = 8.0
# Of a decade, on a logarithmic axis.
TICKS = (1, 2, 3, 5, 7)
LONGEST_NAME = 48


class Point(NamedTuple):
    """Holds the final value of a row against a number of its config.

    Attributes:
      name: of the row.
      x: the number.
      mean: of the final values.
      bar: two standard deviations; 0 of a single run.
    """

    name: str
    x: float
    mean: float
    bar: float


def series(results: Results) -> dict[str, list[Point]]:
    """Collects the rows with a result and a number to draw it against, by what else they set.

    Rows that set all else alike are a line, in order of the number: "" where they set nothing else.
    """
    against = results.settings.against
    found: dict[str, list[Point]] = {}
    for row in results.rows:
        x, summary = value_of(row, against), summarize(row.finals(results.metric))
        if is_number(x) and summary.n:
            others = {key: value for key, value in row.overrides.items() if key != against}
            names = short_names(list(others))
            words = ", ".join(f"{names[key]}={show(value)}" for key, value in others.items())
            bar = 2 * float(np.nan_to_num(summary.std))
            found.setdefault(words, []).append(Point(row.name, x, summary.mean, bar))
    return {words: sorted(line, key=lambda point: point.x) for words, line in found.items()}


def overlays(results: Results) -> list[list[RowResults]]:
    """Lists the rows that are laid over each other, by picture: others over the baseline."""
    if results.settings.overlays:
        return [[results.row(name) for name in names] for names in results.settings.overlays]
    others = [row for row in results.rows if row is not results.baseline]
    return [[results.baseline, other] for other in others] or [[results.baseline]]


def draw(results: Results, folder: AnyPath) -> list[AnyPath]:
    """Writes the pictures that there is something for, and returns where.

    Raises:
      OSError: one cannot be written.
    """
    figures: dict[str, Figure] = {}
    for rows in overlays(results):
        if results.metric and any(row.drawn() for row in rows):
            figures[f"curves_{_file_name(rows)}.png"] = curves_figure(results, rows)
    if results.settings.against and series(results):
        figures[f"against_{results.settings.against}.png"] = against_figure(results)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return [folder / name for name in figures]


def _file_name(rows: Sequence[RowResults]) -> str:
    """Names a picture by its rows, the baseline last, in letters that any disk takes."""
    return Row(" over ".join(row.name for row in reversed(rows)), {}).folder


def of_training(metric: str) -> str:
    """Returns the metric of training beside one of evaluations: "train_error" of "val_error"."""
    return "train_" + metric.removeprefix("val_")


def label(results: Results, row: RowResults, metric: str) -> str:
    """Names a row with its final value, as the paper's legends do; or says how it stands."""
    name = shorten(printable(row.name), LONGEST_NAME)
    final = summarize(row.finals(metric)).format(results.describe(metric).unit)
    if final:
        return f"{name}, {final}{results.describe(metric).unit}"
    statuses = sorted({str(run.status) for run in row.drawn()})
    return f"{name}, {' and '.join(statuses) or Status.MISSING}"


def curves_figure(results: Results, rows: Sequence[RowResults], metric: str = "") -> "Figure":
    """Draws the curves of rows over each other.

    Args:
      metric: of evaluations; by default the one that the report is about.
    """
    metric = metric or results.metric
    figure = new_figure(7, 4.5)
    panel = figure.subplots()
    drawn: list[float] = []
    for i, row in enumerate(rows):
        color = COLORS[i % len(COLORS)]
        training, validation = row.curve(of_training(metric)), row.curve(metric)
        solid = training if len(training.epochs) else validation
        panel.plot(*solid, color=color, label=_literal(label(results, row, metric)))
        panel.plot(*validation, color=color, linestyle="--", linewidth=1.2)
        spread = row.spread(metric).values
        low, high = validation.values - spread, validation.values + spread
        panel.fill_between(validation.epochs, low, high, color=color, alpha=0.15, linewidth=0)
        drawn += [*training.values, *validation.values]
    described = results.describe(metric)
    base = described.words.removeprefix("validation ")
    _scale(panel, drawn)
    panel.set(xlabel="epochs", ylabel=f"{base} {described.unit}".strip())
    panel.set_title("training solid, validation dashed ± std", fontsize="medium", color="0.4")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return figure


def _literal(text: str) -> str:
    """Keeps matplotlib from reading mathematics, and from hiding names that begin with _."""
    return "\N{ZERO WIDTH SPACE}" + text.replace("$", r"\$")


def against_figure(results: Results) -> "Figure":
    """Draws final values against a number of the config, with bars of 2 standard deviations."""
    figure = new_figure(7, 4.5)
    panel = figure.subplots()
    found = series(results)
    for color, (words, line) in zip(itertools.cycle(COLORS), found.items()):
        xs, means, bars = ([getattr(p, name) for p in line] for name in ("x", "mean", "bar"))
        name = _literal(shorten(words, LONGEST_NAME) or "as the config file has it")
        panel.errorbar(xs, means, bars, color=color, marker="o", capsize=3, label=name)
    if len(found) > 1:
        panel.legend(frameon=False)
    _name_numbers(panel, sorted({point.x for line in found.values() for point in line}))
    _name_diverged(panel, results)
    (name,) = short_names([results.settings.against]).values()
    panel.set(xlabel=name.replace("_", " "), ylabel=str(results.describe(results.metric)))
    panel.set_title("mean ± 2 std", fontsize="medium", color="0.4")
    panel.grid(alpha=0.3)
    return figure


def _name_numbers(panel: Any, xs: Sequence[float]) -> None:
    """Makes the axis of positive numbers logarithmic, with ticks at these."""
    if xs[0] > 0:
        panel.set_xscale("log")
        panel.set_xticks(xs, [f"{x:g}" for x in xs])
        panel.minorticks_off()


def _name_diverged(panel: Any, results: Results) -> None:
    """Names the rows below the picture of which no run came to a result, for they have no point."""
    none = [row for row in results.rows if not len(row.finals(results.metric))]
    gone = [printable(row.name) for row in none if row.of(Status.DIVERGED)]
    if gone:
        said = shorten("diverged: " + ", ".join(gone), 90)
        panel.text(0.01, 0.01, _literal(said), transform=panel.transAxes, color="#B00020")


def _scale(panel: Any, values: Sequence[float]) -> None:
    """Makes the axis of what spans decades logarithmic, with ticks that can be read."""
    finite = [value for value in values if np.isfinite(value)]
    if not is_log(finite):
        return
    panel.set_yscale("log")
    low, high = min(finite) / 1.2, max(finite) * 1.2
    ticks = [m * 10.0**power for power in range(-9, 10) for m in TICKS]
    shown = [tick for tick in ticks if low <= tick <= high]
    panel.set_yticks(shown, [f"{tick:g}" for tick in shown])
    panel.minorticks_off()


def is_log(values: Sequence[float]) -> bool:
    """Tells whether positive values span enough to be drawn on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > LOG_SPAN * min(values)
