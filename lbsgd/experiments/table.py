"""The table of a report, in the paper's form: as cells, and as Markdown."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lbsgd.config.keys import options_key
from lbsgd.experiments.outcome import Status
from lbsgd.experiments.results import Results, RowResults, Run
from lbsgd.experiments.statistics import Difference, compare, say_p, summarize
from lbsgd.system.text import one_line, pluralize, printable, shorten

# Columns that are shown where a sweep names none.
MOST_COLUMNS = 4
# Characters of a value in a cell.
LONGEST_CELL = 40


class Line(NamedTuple):
    """Holds a line of the table.

    Attributes:
      row: whose it is.
      cells: texts, by heading, in order.
      keys: what the cells are sorted by: numbers, or texts.
      difference: to the baseline; None of the baseline itself, or where there is no result.
    """

    row: RowResults
    cells: Mapping[str, str]
    keys: Mapping[str, float | str]
    difference: Difference | None


def lines(results: Results) -> list[Line]:
    """Makes the lines of the table."""
    columns = short_names(shown_columns(results))
    return [_line(results, row, columns) for row in results.rows]


def shown_columns(results: Results) -> tuple[str, ...]:
    """Lists the keys of the config that are shown: those the sweep names, or that its rows set.

    Of rows that set nothing, as single runs, those in which their configs differ.
    """
    set_ = dict.fromkeys(key for row in results.rows for key in row.overrides)
    found = results.settings.columns or tuple(set_) or tuple(differing(results.rows))
    return found if results.settings.columns else found[:MOST_COLUMNS]


def differing(rows: Sequence[RowResults]) -> list[str]:
    """Lists the keys of the config in which those rows differ that have begun."""
    configs = [row.config for row in rows if row.config]
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({_canonical(c.get(key)) for c in configs}) > 1]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Shortens dotted keys to their last part, where no other of them ends so."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    short = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if last[name] == 1 else key for key, name in short.items()}


def value_of(row: RowResults, key: str) -> Any:
    """Returns a row's value of a key of the config; None where it is not known yet."""
    if key in row.config:
        return row.config[key]
    options = options_key(key)
    inside: Any = row.config.get(options)
    for name in key.removeprefix(f"{options}.").split("."):
        inside = inside.get(name) if isinstance(inside, Mapping) else None
    return row.overrides.get(key) if inside is None else inside


def show(value: Any) -> str:
    """Writes a value of the config for a cell."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return shorten(one_line(", ".join(map(show, value)) or "()"), LONGEST_CELL)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return shorten(one_line(text), LONGEST_CELL)


def _line(results: Results, row: RowResults, columns: Mapping[str, str]) -> Line:
    metric = results.metric
    summary = summarize(row.finals(metric))
    complete = row.of(Status.COMPLETE)
    against = None if row is results.baseline or not summary.n else _difference(results, row)
    cells = {"row": printable(row.name)}
    keys: dict[str, float | str] = {"row": row.name}
    for key, name in columns.items():
        value = value_of(row, key)
        cells[name], keys[name] = show(value), value if _sorts(value) else show(value)
    heading = str(results.describe(metric)) if metric else "result"
    more: dict[str, tuple[str, float | str]] = {
        "n": (_count(row, summary.n), summary.n),
        "updates": _range([run.updates for run in complete], ",d"),
        "epochs": _range([run.epochs for run in complete], ".4g"),
        heading: (_mean(results, row), summary.mean if summary.n else "~"),
        f"difference to {printable(results.baseline.name)}": _say_difference(results, row, against),
    }
    cells |= {name: cell for name, (cell, _) in more.items()}
    return Line(row, cells, keys | {name: key for name, (_, key) in more.items()}, against)


def _sorts(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _difference(results: Results, row: RowResults) -> Difference | None:
    base = results.baseline.finals(results.metric)
    return compare(row.finals(results.metric), base) if len(base) else None


def _mean(results: Results, row: RowResults) -> str:
    """Writes the mean and the standard deviation, or why there is none."""
    metric = results.metric
    summary = summarize(row.finals(metric)) if metric else None
    if summary and summary.n:
        return summary.format(results.describe(metric).unit)
    statuses = {run.status for run in row.runs}
    return str(statuses.pop()) if len(statuses) == 1 else "none"


def _count(row: RowResults, n: int) -> str:
    """Writes how many runs count, and of how many where others did not come to a result."""
    others = Counter(run.status for run in row.runs if run.status is not Status.COMPLETE)
    if n + others.total() == len(row.runs) and not others:
        return str(n)
    said = [f"{count} of {len(row.runs)} {status}" for status, count in others.items()]
    without = len(row.of(Status.COMPLETE)) - n
    said += [f"{without} without an evaluation"] if without else []
    return f"{n} ({', '.join(said)})"


def _range(numbers: Sequence[float], form: str) -> tuple[str, float | str]:
    if not numbers:
        return "", "~"
    low, high = (format(number, form) for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}", min(numbers)


def _say_difference(
    results: Results, row: RowResults, found: Difference | None
) -> tuple[str, float | str]:
    if row is results.baseline:
        return "baseline", 0.0
    if not found:
        return "", "~"
    digits = 2 if results.describe(results.metric).unit == "%" else 4
    p = f", {say_p(found.p)}" if found.tested else ""
    return f"{found.value:+.{digits}f}{p}", found.value


def markdown(results: Results) -> str:
    """Writes the table and what must be known to read it, as Markdown."""
    found = lines(results)
    cells = [[escape(name) for name in found[0].cells], *map(_escaped, found)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    written = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([written[0], rule, *written[1:], "", *_said(results)])


def _escaped(line: Line) -> list[str]:
    """Escapes the cells of a line, and sets a significant difference in bold."""
    *cells, last = map(escape, line.cells.values())
    return [*cells, f"**{last}**" if line.difference and line.difference.significant else last]


def escape(text: str) -> str:
    """Escapes what Markdown would take for more than text."""
    for mark in ("\\", "|", "*", "`", "[", "]"):
        text = text.replace(mark, "\\" + mark)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def _said(results: Results) -> list[str]:
    """Writes what must be known to read the table, with a list of what is in no mean."""
    gone = [f"- {escape(line)}" for line in incomplete(results)]
    parts = [[escape(text)] for text in what_is_shown(results)]
    parts += [["Not in the means:", "", *gone]] if gone else []
    parts += [[escape(text)] for text in sources(results)]
    return [line for part in parts for line in (*part, "")][:-1]


def what_is_shown(results: Results) -> list[str]:
    """Says what the numbers are, a paragraph each."""
    if not results.metric:
        return ["No run has come to a result yet."]
    name = str(results.describe(results.metric))
    said = (
        f"{name[:1].upper()}{name[1:]}: of each run the median over its final 5 epochs; mean ± "
        "standard deviation over n runs."
    )
    tests = any(line.difference and line.difference.tested for line in lines(results))
    if tests:
        said += (
            " A difference in bold is significant (Welch's t, two-sided, p < 0.05, each row for "
            "itself); others cannot be told apart at these n."
        )
    if any(row.own_validation_sets for row in results.rows):
        said += (
            " Each seed is judged by a validation set of its own (data.validation_fraction): the "
            "deviation is of these sets too."
        )
    return [said]


def incomplete(results: Results) -> list[str]:
    """Names the runs that are in no mean, and why, a line for those of a row that are alike."""
    return [
        f"{printable(row.name)}: {status} ({_seeds(runs)}){f': {reason}' if reason else ''}"
        for row in results.rows
        for (status, reason), runs in _alike(row).items()
    ]


def _alike(row: RowResults) -> dict[tuple[str, str], list[Run]]:
    """Groups the runs that came to no result by how they stand, and why."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in row.runs:
        if run.status is not Status.COMPLETE:
            found.setdefault((run.status, one_line(run.reason)), []).append(run)
        elif not run.finals:
            found.setdefault(("without an evaluation", ""), []).append(run)
    return found


def sources(results: Results) -> list[str]:
    """Says how rows were tuned, and on what and with which code the runs were made."""
    return [*_tuned(results), *_machines(results)]


def _tuned(results: Results) -> list[str]:
    said = [
        f"{printable(row.name)}: {_pairs(row.tuned.values)}, the best of "
        f"{pluralize(row.tuned.tried, 'point')} tried"
        for row in results.rows
        if row.tuned
    ]
    return [f"Tuned with a seed of its own: {'; '.join(said)}."] if said else []


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={show(value)}" for key, value in values.items())


def _machines(results: Results) -> list[str]:
    """Says on what and with which code the runs were made."""
    runs = [run for run in results.runs() if run.status is not Status.MISSING]
    machines = [machine for run in runs for machine in run.machines]
    if not machines:
        return []
    hardware = _each(_hardware(machine) for machine in machines)
    versions = _each(_versions(machine) for machine in machines)
    commits = _each(_commit(machine) for machine in machines)
    return [f"On {hardware}; {versions}; {commits}; {_seeds(runs)}."]


def _each(texts: Any) -> str:
    return " and ".join(dict.fromkeys(filter(None, texts)))


def _hardware(machine: Mapping[str, Any]) -> str:
    devices = f"{pluralize(machine.get('devices') or 1, 'device')} ({machine.get('device')})"
    return f"{devices}, {pluralize(machine.get('cpus') or 1, 'CPU core')}"


def _versions(machine: Mapping[str, Any]) -> str:
    packages = machine.get("packages") or {}
    named = [f"{name} {packages[name]}" for name in ("lbsgd", "jax", "flax") if packages.get(name)]
    return ", ".join([*named, f"Python {machine.get('python')}"])


def _commit(machine: Mapping[str, Any]) -> str:
    commit = machine.get("git_commit")
    if not commit:
        return ""
    plain, _, changed = commit.partition("-")
    return f"commit {plain[:10]}{' with changes' if changed else ''}"


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
