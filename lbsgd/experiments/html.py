"""Makes report.html: one file with the table, interactive curves and each row's derivation.

It holds all that it needs, among it the 4.8 MB of plotly's JavaScript, and fetches nothing.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from lbsgd.experiments import table
from lbsgd.experiments.outcome import Status
from lbsgd.experiments.results import Results, RowResults, Run
from lbsgd.experiments.traces import COLORS, against, final_traces, metrics
from lbsgd.system.text import one_line, pluralize, printable


def page(results: Results) -> str:
    """Makes the whole page."""
    from plotly.offline import get_plotlyjs

    lines = table.lines(results)
    of_against = against(results)
    parts = {
        "title": _text(results.title),
        "css": _part("report.css"),
        "summary": _text(_summary(results)),
        "warnings": _warnings(results),
        "table": _table(lines),
        "said": "".join(f'<p class="faint">{_text(t)}</p>' for t in table.what_is_shown(results)),
        "options": _options(results),
        "finals_height": f"{6 + 2.6 * len(results.rows):g}",
        "against": _against_figure(of_against["label"]) if of_against else "",
        "details": "\n".join(_details(results, line) for line in lines),
        "sources": "".join(f"<p>{_text(text)}</p>" for text in table.sources(results)),
        "data": _json(_data(results, of_against)),
        "plotly": get_plotlyjs(),
        "script": _part("report.js"),
    }
    # In one go, for a part may hold what looks like the name of another.
    pieces = _part("report.html").split("{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}")
        filled += [parts[name], rest]
    return "".join(filled)


def _part(name: str) -> str:
    return (resources.files("lbsgd.experiments") / "page" / name).read_text("utf-8")


def _text(text: str) -> str:
    """Escapes any text for HTML."""
    return html.escape(printable(text))


def _json(data: Any) -> str:
    """Writes data for a script element, which no text in it can end."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def _data(results: Results, of_against: dict[str, Any]) -> dict[str, Any]:
    metric = results.metric
    return {
        "rows": [{"name": printable(row.name)} for row in results.rows],
        "colors": COLORS,
        "label": str(results.describe(metric)) if metric else "",
        "metrics": metrics(results),
        "finals": final_traces(results),
        "against": of_against,
    }


def _summary(results: Results) -> str:
    runs = results.runs()
    complete = sum(run.status is Status.COMPLETE for run in runs)
    files = f" of {', '.join(results.files)}" if results.files else ""
    return (
        f"{pluralize(len(results.rows), 'row')}{files}; {complete} of "
        f"{pluralize(len(runs), 'run')} complete"
    )


def _warnings(results: Results) -> str:
    gone = "".join(f"<li>{_text(line)}</li>" for line in table.incomplete(results))
    return f'<aside class="warn">Not in the means:<ul>{gone}</ul></aside>' if gone else ""


def _table(lines: Sequence[table.Line]) -> str:
    headings = "".join(
        f'<th scope="col"{_of_row(name)}><button type="button">{_text(name)}</button></th>'
        for name in lines[0].cells
    )
    body = "\n".join(_table_line(i, line) for i, line in enumerate(lines))
    return (
        f'<table id="results"><thead><tr>{headings}</tr></thead><tbody>\n{body}\n</tbody></table>'
    )


def _of_row(name: str) -> str:
    return ' class="row"' if name == "row" else ""


def _table_line(index: int, line: table.Line) -> str:
    cells = []
    for name, cell in line.cells.items():
        key = html.escape(str(_sortable(line.keys[name])))
        content, extra = _text(cell), _of_row(name)
        if name == "row":
            content = (
                f'<label><input type="checkbox" checked data-row="{index}" autocomplete="off">'
                f'<span class="swatch" data-row="{index}"></span><span>{content}</span></label>'
            )
        elif name == "n" and " (" in cell:
            number, _, others = cell.partition(" (")
            content = f"{number}<small>{_text(others.rstrip(')'))}</small>"
        elif name == list(line.cells)[-1] and line.difference:
            value, _, p = cell.partition(", ")
            content = f"{_text(value)}<small>{_text(p)}</small>"
            extra = ' class="significant"' if line.difference.significant else ""
        cells.append(f'<td{extra} data-key="{key}">{content}</td>')
    return f'<tr data-row="{index}">{"".join(cells)}</tr>'


def _sortable(key: float | str) -> float | str:
    """Writes what a cell is sorted by; "" comes last."""
    return "" if key == "~" or (isinstance(key, float) and not math.isfinite(key)) else key


def _options(results: Results) -> str:
    return "".join(
        f'<option value="{html.escape(name)}">{_text(found["label"])}</option>'
        for name, found in metrics(results).items()
    )


def _against_figure(label: str) -> str:
    return (
        f'<h2>Against {_text(label)}</h2>\n<figure><div id="against" class="plot"></div>\n'
        "<figcaption>Mean ± two standard deviations, as in Figure 1 of Goyal et al. 2017."
        "</figcaption></figure>"
    )


def _details(results: Results, line: table.Line) -> str:
    """Tells of a row how it differs, how its numbers follow from its config, and of its runs."""
    row = line.row
    heading = list(line.cells)[-2]
    parts = [
        _list("Sets", _pairs(row.overrides.items())),
        _list(f"Differs from {results.baseline.name} in", _differences(results, row)),
        _list("Tuned", _pairs(row.tuned.values.items()) if row.tuned else []),
        _list("Points that were tried", list(map(_point, row.tuned.points)) if row.tuned else []),
        _explanation(row),
        _runs(results, row),
    ]
    return (
        f"<details><summary>{_text(row.name)}<span class=faint>{_text(line.cells[heading])}</span>"
        f"</summary><div>{''.join(parts)}</div></details>"
    )


def _pairs(items: Any) -> list[str]:
    return [f"{key} = {table.show(value)}" for key, value in items]


def _point(point: Mapping[str, Any]) -> str:
    final = point["final"]
    came = point["status"] if final is None else f"{final:.4f}"
    return f"{', '.join(_pairs(point['values'].items()))}: {came}"


def _differences(results: Results, row: RowResults) -> list[str]:
    if row is results.baseline:
        return []
    base = results.baseline
    return [
        f"{key} = {table.show(row.config.get(key))}, there {table.show(base.config.get(key))}"
        for key in table.differing([base, row])
        if key not in row.overrides
    ]


def _list(heading: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    items = "".join(f"<li><code>{_text(text)}</code></li>" for text in texts)
    return f"<h3>{_text(heading)}</h3><ul class=plain>{items}</ul>"


def _explanation(row: RowResults) -> str:
    lines = "\n".join(_text(line) for line in row.explanation)
    return f"<h3>Derivation</h3><pre>{lines}</pre>" if lines else ""


def _runs(results: Results, row: RowResults) -> str:
    headings = "".join(f"<th>{h}</th>" for h in ("seed", "status", "updates", "final", "why"))
    body = "".join(_run(results, run) for run in row.runs)
    return (
        f"<h3>Runs</h3><div class=scroll tabindex=0><table class=runs><thead><tr>{headings}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _run(results: Results, run: Run) -> str:
    final = run.finals.get(results.metric)
    unit = results.describe(results.metric).unit if final is not None else ""
    said = "" if final is None else f"{final:.2f} %" if unit == "%" else f"{final:.4f}"
    cells = (str(run.seed), run.status, f"{run.updates:,}", said, one_line(run.reason))
    return "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
