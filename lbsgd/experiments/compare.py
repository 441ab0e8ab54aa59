"""Compares rows: where their configs differ, which is better, and where their curves part."""

import string
import textwrap
from collections.abc import Sequence

import numpy as np

from lbsgd.experiments import table
from lbsgd.experiments.outcome import Status
from lbsgd.experiments.results import Curve, Results, RowResults, Run
from lbsgd.experiments.statistics import compare, say, summarize
from lbsgd.run.config import KEYS
from lbsgd.run.record.metrics import read_whole_lines
from lbsgd.run.workdir import Workdir
from lbsgd.system.text import one_line, pluralize, printable, shorten

COLUMNS = 100
LONGEST_NAME = 60
# Relative: by so much the losses of an update differ where two runs are said to have parted.
APART = 0.01


def report(results: Results) -> list[str]:
    """Compares all rows with the baseline, in lines of at most 100 columns.

    Raises:
      ConfigError: they are of tasks that are judged by different metrics.
    """
    marked = marks(results)
    names = [f"{mark}  {_name(results.row(name))}" for name, mark in marked.items()]
    parts = [names, differences(results), standings(results), _verdicts(results), partings(results)]
    lines = [line for part in parts if part for line in (*part, "")][:-1]
    return [wrapped for line in lines for wrapped in _wrap(line)]


def marks(results: Results) -> dict[str, str]:
    """Gives each row a letter, or a number where there are too many for letters."""
    rows = [results.baseline, *(row for row in results.rows if row is not results.baseline)]
    letters = string.ascii_uppercase if len(rows) <= len(string.ascii_uppercase) else ""
    return {row.name: letters[i] if letters else str(i + 1) for i, row in enumerate(rows)}


def _name(row: RowResults) -> str:
    return shorten(printable(row.name), LONGEST_NAME)


def _wrap(line: str) -> list[str]:
    """Wraps a line, its later lines further in."""
    inside = len(line) - len(line.lstrip()) + 4
    return textwrap.wrap(
        line,
        COLUMNS,
        subsequent_indent=" " * inside,
        drop_whitespace=True,
        break_on_hyphens=False,
    ) or [""]


# --- where they differ -------------------------------------------------------------------------


def differences(results: Results) -> list[str]:
    """Lists the keys of the config that differ; those of where and how it is computed come last."""
    marked = marks(results)
    rows = [results.row(name) for name in marked]
    begun = [_with_seed(row, rows) for row in rows if row.config]
    lines = [
        f"{marked[row.name]} has not begun, and its config is not known yet"
        for row in rows
        if not row.config
    ]
    keys = table.differing(begun)
    machine = [key for key in keys if key in KEYS and KEYS[key].machine]
    others = [key for key in keys if key not in machine]
    found = _grid("they differ in", others, begun, marked)
    found += _grid("where and how they are computed", machine, begun, marked)
    if len(begun) > 1 and not keys:
        found = ["their configs are the same"]
    return [*found, *lines, *_of_validation(rows)]


def _with_seed(row: RowResults, rows: Sequence[RowResults]) -> RowResults:
    """Makes the seed a key of the config like others, where all are single runs."""
    if any(len(other.runs) != 1 for other in rows):
        return row
    # Under another name, for the config of a row is without its seed.
    run = row.runs[0]
    return row._replace(runs=(run._replace(config={" seed": run.seed, **run.config}),))


def _grid(
    heading: str, keys: Sequence[str], rows: Sequence[RowResults], marked: dict[str, str]
) -> list[str]:
    """Writes values by key and row, as a table where that fits."""
    if not keys:
        return []
    values = [[table.show(row.config.get(key)) or '""' for row in rows] for key in keys]
    head = [marked[row.name] for row in rows]
    cells = [[heading, *head], *([f"  {key.strip()}", *v] for key, v in zip(keys, values))]
    widths = [max(map(len, column)) for column in zip(*cells)]
    if sum(widths) + 2 * len(widths) <= COLUMNS:
        return ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in cells]
    return [heading, *(_by_value(key, v, head) for key, v in zip(keys, values))]


def _by_value(key: str, values: Sequence[str], marks_: Sequence[str]) -> str:
    """Writes a line of the values of a key, each with the rows that have it."""
    having: dict[str, list[str]] = {}
    for value, mark in zip(values, marks_):
        having.setdefault(value, []).append(mark)
    said = "; ".join(f"{', '.join(found)}: {value}" for value, found in having.items())
    return f"  {key.strip()}  {said}"


def _of_validation(rows: Sequence[RowResults]) -> list[str]:
    """Says that validation sets differ, seed by seed where rows have seeds in common."""
    known = [
        {run.seed: run.validation_set for run in row.runs if run.validation_set} for row in rows
    ]
    sets = [found for found in known if found]  # of rows that have begun
    if len(sets) < 2:
        return []
    common = set.intersection(*map(set, sets))
    alike = [{found[seed] for seed in common} if common else {*found.values()} for found in sets]
    if all(found == alike[0] for found in alike):
        return []
    return ["their validation sets differ: a difference of results may be one of these sets"]


# --- which is better ---------------------------------------------------------------------------


def standings(results: Results) -> list[str]:
    """Says what each row came to, or how it stands."""
    if not results.metric:
        return ["none has come to a result yet"]
    marked, described = marks(results), results.describe(results.metric)
    heading = f"{described}, median over the final 5 epochs; mean ± standard deviation of n runs"
    rows = [results.row(name) for name in marked]
    return [heading, *(f"  {marked[r.name]}  {_standing(results, r)}" for r in rows)]


def _standing(results: Results, row: RowResults) -> str:
    summary = summarize(row.finals(results.metric))
    final = summary.format(results.describe(results.metric).unit)
    counted = [f"{final}, n = {summary.n}"] if summary.n else []
    others = [run for run in row.runs if run.status is not Status.COMPLETE]
    if len(row.runs) == 1 and others:
        return _so_far(results, others[0])
    return "; ".join([*counted, *_groups(row)]) or "complete, without an evaluation"


def _groups(row: RowResults) -> list[str]:
    """Says of how many runs of a row there is no result: "1 of 5 diverged (why)"."""
    found: dict[tuple[str, str], int] = {}
    for run in row.runs:
        if run.status is not Status.COMPLETE:
            key = (str(run.status), one_line(run.reason))
            found[key] = found.get(key, 0) + 1
    return [
        f"{count} of {len(row.runs)} {status}{f' ({why})' if why else ''}"
        for (status, why), count in found.items()
    ]


def _so_far(results: Results, run: Run) -> str:
    """Says how a run stands that is not complete."""
    at = f"{run.status} after {pluralize(run.updates, 'update')} = {run.epochs:.4g} epochs"
    why = f": {one_line(run.reason)}" if run.reason else ""
    curve = run.curves.get(results.metric)
    finite = curve.values[np.isfinite(curve.values)] if curve else np.array([])
    if not len(finite) or run.status is Status.MISSING:
        return str(run.status) if run.status is Status.MISSING else at + why
    unit = results.describe(results.metric).unit
    return f"{at}{why}; {summarize(finite[-1:]).format(unit)} at the last evaluation"


def _verdicts(results: Results) -> list[str]:
    """Says of each row whether it is better than the baseline, with what certainty."""
    if not results.metric:
        return []
    marked, base = marks(results), results.baseline
    described = results.describe(results.metric)
    lines = []
    for name, mark in list(marked.items())[1:]:
        found = compare(results.row(name).finals(results.metric), base.finals(results.metric))
        said = say(found, described.unit, described.rises)
        lines.append(f"{mark} against {marked[base.name]}: {said}")
    return lines


# --- where they part ---------------------------------------------------------------------------


def partings(results: Results) -> list[str]:
    """Says of each row where it parts from the baseline."""
    marked, base = marks(results), results.baseline
    rows = [results.row(name) for name in list(marked)[1:]]
    said = [(marked[row.name], _parting(results, base, row)) for row in rows]
    return [f"{mark} from {marked[base.name]}: {text}" for mark, text in said if text]


def _parting(results: Results, base: RowResults, row: RowResults) -> str:
    if len(base.runs) == len(row.runs) == 1:
        return _of_runs(base.runs[0], row.runs[0])
    return _of_rows(results, base, row)


def _of_runs(one: Run, other: Run) -> str:
    """Says at which update two single runs part."""
    if one.seed != other.seed:
        return f"their seeds differ ({one.seed} and {other.seed}), so they part at the first update"
    losses = [_losses(run) for run in (one, other)]
    both = sorted(losses[0].keys() & losses[1].keys())
    if not both:
        return ""
    step = parting(losses[0], losses[1])
    if step is None:
        many = pluralize(len(both), "update")
        return f"their training losses are never more than 1% apart, at {many} that both logged"
    a, b = losses[0][step], losses[1][step]
    return (
        f"they part at update {step:,}, the first logged whose training losses are more than 1% "
        f"apart: {a:.4g} and {b:.4g}"
    )


def parting(one: dict[int, float], other: dict[int, float]) -> int | None:
    """Finds the first update whose training losses are more than 1% apart; None if none is.

    Args:
      one: losses by update; only updates that both have count.
    """
    for step in sorted(one.keys() & other.keys()):
        if abs(one[step] - other[step]) > APART * max(abs(one[step]), abs(other[step])):
            return step
    return None


def _losses(run: Run) -> dict[int, float]:
    if run.workdir is None:
        return {}
    lines, _ = read_whole_lines(Workdir(run.workdir).metrics)
    return {line["step"]: loss for line in lines if (loss := line.get("train_loss")) is not None}


def _of_rows(results: Results, base: RowResults, row: RowResults) -> str:
    """Says from which evaluation on the means of two rows differ."""
    curves = [
        [
            run.curves[results.metric]
            for run in r.runs
            if results.metric in run.finals and results.metric in run.curves
        ]
        for r in (base, row)
    ]
    if min(map(len, curves)) < 2 or not _overlap([*curves[0], *curves[1]]):
        return ""
    epoch = parting_epoch(*curves)
    if epoch is None:
        return "their means do not differ significantly from any evaluation on to the last"
    return f"their means differ significantly at each evaluation from epoch {epoch:.4g} on"


def _overlap(curves: Sequence[Curve]) -> bool:
    """Tells whether there are epochs that all curves reach."""
    return max(c.epochs[0] for c in curves) <= min(c.epochs[-1] for c in curves)


def parting_epoch(one: Sequence[Curve], other: Sequence[Curve]) -> float | None:
    """Finds the epoch of the first evaluation from which on the means of two rows differ.

    Rows need not be evaluated at the same time, as batches differ in size: each run's curve is
    interpolated at the evaluations of the first of `one`, as far as all curves reach.

    Args:
      one: curves of the runs of a row, which have epochs in common with those of `other`.

    Returns:
      None if they do not differ significantly at the last.
    """
    start = max(curve.epochs[0] for curve in (*one, *other))
    end = min(curve.epochs[-1] for curve in (*one, *other))
    at = one[0].epochs
    # The ends of rows with batches of different sizes are a part of an update apart.
    at = np.unique(np.clip(at, start, end))
    values = [np.array([np.interp(at, *curve) for curve in curves]) for curves in (one, other)]
    parted = None
    for i in reversed(range(len(at))):
        found = compare(values[0][:, i], values[1][:, i])
        # Without any spread; a value that is not finite is no difference.
        always = not found.tested and abs(found.value) > 0
        if not (found.significant or always):
            break
        parted = float(at[i])
    return parted
