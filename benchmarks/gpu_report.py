"""What benchmarks/gpu.py measured, as one file and as tables."""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from gpu_job import ROOT
from provenance import provenance

RESULTS = ROOT / "docs" / "results" / "gpu.json"
NOTHING = "No figure of a GPU exists yet: lbsgd has not been measured on one."
PIECES = "pieces"
# What tells results of one name apart.
KEYS = ("what", "case", "threads", "batch_size", "config")
MOST_KINDS, MOST_OPERATIONS, LONGEST_KERNEL = 12, 10, 60

Result = dict[str, object]
Results = dict[str, list[Result]]


def read_lines(path: pathlib.Path) -> list[Result]:
    """Reads a file of JSON lines, but for a last one that was cut short."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def collect(folders: Sequence[pathlib.Path]) -> Results:
    """All results of some calls by part; of one that was measured twice, the later.

    Raises:
      ValueError: there are none.
    """
    results: dict[str, dict[str, Result]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.jsonl")):
            for line in read_lines(path):
                key = json.dumps([line.get(k) for k in KEYS] + [line.get("piece")])
                results.setdefault(path.stem, {})[key] = line
    return {part: list(lines.values()) for part, lines in results.items()}


def write(folders: Sequence[pathlib.Path], path: pathlib.Path = RESULTS) -> None:
    """Writes the file in docs/results.

    Raises:
      ValueError: there are no results, or some are of a trial.
    """
    results = collect(folders)
    lines = [line for part in results if part != PIECES for line in results[part]]
    if not lines:
        raise ValueError(f"no results in {', '.join(map(str, folders))}")
    if any(line["trial"] for line in lines):
        raise ValueError(f"{', '.join(map(str, folders))}: those of a trial are no results")
    path.write_text(json.dumps(results, indent=1) + "\n")


def table(path: pathlib.Path = RESULTS) -> str:
    """The tables of the file, or that there is none."""
    return tables(json.loads(path.read_text())) if path.exists() else NOTHING


def tables(results: Results) -> str:
    """Each part that has results, as Markdown."""
    shown = [make(results[part]) for part, make in TABLES.items() if results.get(part)]
    for lines in (results[part] for part in TABLES if results.get(part)):
        shown += [
            f"{x['what']}: {x.get('skipped') or x.get('failed')}." for x in lines if not x["n"]
        ]
    ends = [x for x in results.get(PIECES, []) if x.get("exit_code") != 0]
    shown += [f"{x['piece']}: {x.get('skipped') or 'did not end well'}." for x in ends]
    return "\n\n".join(filter(None, shown))


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]], lines: Sequence[Result]) -> str:
    """A table, and what it was measured on."""
    if not rows:
        return ""
    text = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    text.insert(1, "|---" * len(head) + "|")
    return "\n".join([*text, "", conditions([line for line in lines if line["n"]])])


def conditions(lines: Sequence[Result]) -> str:
    """The devices, versions and commits of some results, and how many measurements each is."""
    trial = "A trial, no result. " if any(line["trial"] for line in lines) else ""
    return trial + provenance([x["machine"] for x in lines], *(x["n"] for x in lines))


def check_table(lines: Sequence[Result]) -> str:
    """Differences, bounds and verdicts; and the error of the whole run of digits."""
    rows = []
    for line in lines:
        if "difference" in line:
            bound = f"{line['bound']:.1e}" if "bound" in line else "none"
            verdict = {True: "yes", False: "NO", None: ""}[line.get("holds")]
            same = "yes" if line["bitwise"] else "no"
            cells = [line["what"], line["updates"], f"{line['difference']:.1e}", bound, verdict]
            rows.append([*cells, same])
    head = ("comparison", "updates", "difference", "bound", "holds", "bitwise")
    whole = [
        f"{x['what']}: {x['val_error']:.2f}% validation error." for x in lines if "val_error" in x
    ]
    return "\n\n".join(filter(None, [markdown(head, rows, lines), *whole]))


def step_table(lines: Sequence[Result]) -> str:
    """Images/s, their ratio to plain Flax in the same rounds, utilization, memory; accumulation."""
    rows = []
    accumulation = [line for line in lines if "update_seconds" in line]
    lines = [line for line in lines if line not in accumulation]
    for line in lines:
        if line["what"] == "step":
            rows += [_step_row(line, key) for key in ("lbsgd", "plain")]
        elif "torch" in line:
            rate, peak = line["images_per_second"], line["peak_bytes"]
            memory = f"{peak / 1e9:.1f} (peak)" if peak else ""
            cells = [*line["case"], line["torch_device"], line["what"], f"{rate:,.0f}"]
            rows.append([*cells, "", "", memory])
    head = ("network", "pixels", "kn", "n", "type", "device", "by", "images/s", "of plain Flax's")
    steps = markdown((*head, "MFU %", "GB of temporaries"), rows, lines)
    return "\n\n".join(filter(None, [steps, _accumulation_table(accumulation)]))


def _accumulation_table(lines: Sequence[Result]) -> str:
    """Images/s of a minibatch in one accumulation step and in several."""
    rows = []
    for line in lines:
        one, kn = line["update_seconds"]["1"], line["case"][2]
        for steps, seconds in line["update_seconds"].items():
            ratios = [a / b for a, b in zip(seconds, one)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rate = f"{kn / statistics.median(seconds):,.0f}"
            memory = f"{line['temporary_bytes'][steps] / 1e9:.2f}"
            rows.append([*line["case"], steps, rate, spread if steps != "1" else "", memory])
    head = ("network", "pixels", "kn", "n", "type", "accumulation steps", "images/s")
    return markdown((*head, "time, of one step's", "GB of temporaries"), rows, lines)


def _step_row(line: Result, key: str) -> list[object]:
    low, middle, high = line["ratio"]
    mfu = line["mfu"][key]
    return [
        *line["case"],
        line["machine"]["device"],
        {"lbsgd": "lbsgd", "plain": "plain Flax"}[key],
        f"{line['images_per_second'][key]:,.0f}",
        f"{middle:.2f} ({low:.2f} to {high:.2f})" if key == "lbsgd" else "",
        f"{100 * mfu:.1f}" if mfu else "",
        f"{line['memory'][key]['temp_size_in_bytes'] / 1e9:.2f}",
    ]


def profile_table(lines: Sequence[Result]) -> str:
    """The operations that take the most time, by kind and single; what the loop around costs."""
    texts = []
    for line in [line for line in lines if "kinds" in line]:
        rows = [_kind_row(kind, line["busy_ms"]) for kind in line["kinds"][:MOST_KINDS]]
        case = " ".join(map(str, line["case"]))
        moved = sum(kind["bytes"] for kind in line["kinds"]) / line["case"][2] / 1e6
        title = f"{line['what']}, {case}: {line['wall_ms']:.1f} ms an update, the device busy for "
        title += f"{line['busy_ms']:.1f}, {moved:,.0f} MB an image:"
        head = ("calls", "ms", "share %", "GB", "GB/s")
        texts.append(f"{title}\n\n{markdown(('operations', *head), rows, [line])}")
        rows = [_operation_row(x, line["busy_ms"]) for x in line["operations"][:MOST_OPERATIONS]]
        texts.append(markdown(("operation", *head, "kernel"), rows, [line]))
    texts.append(_loop_table([line for line in lines if "updates_per_second" in line]))
    return "\n\n".join(filter(None, texts))


def _loop_table(lines: Sequence[Result]) -> str:
    """Updates/s by how much of the loop of a run there is."""
    rows = []
    for line in lines:
        rates = line["updates_per_second"]
        spread = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        rows.append([" ".join(map(str, line["case"])), line["what"], spread])
    return markdown(("step", "with", "updates/s"), rows, lines)


def _operation_row(operation: Mapping[str, object], busy: float) -> list[str]:
    """A single operation, and the beginning of its longest kernel's name."""
    kernel = f"`{operation['kernel'][:LONGEST_KERNEL].replace('|', '/')}`"
    return [*_kind_row({"kind": operation["operation"], **operation}, busy), kernel]


def _kind_row(kind: Mapping[str, object], busy: float) -> list[str]:
    moved, ms = kind["bytes"], kind["ms"]
    return [
        f"{kind['kind']}",
        f"{kind['calls']:.1f}",
        f"{ms:.3f}",
        f"{100 * ms / busy:.1f}",
        f"{moved / 1e9:.3f}" if moved else "",
        f"{moved / 1e6 / ms:,.0f}" if moved and ms else "",
    ]


def train_table(lines: Sequence[Result]) -> str:
    """Error and speed of the rows of CIFAR-10."""
    rows = [
        [
            line["what"],
            f"{line['epochs']:.1f}" + ("" if line["ended"] else f" of {line['epochs_asked']}"),
            f"{line['updates']:,}",
            "" if line["val_error"] is None else f"{line['val_error']:.2f}",
            f"{line['images_per_second']:,.0f}",
            f"{line['data_wait_percent']:.1f}",
        ]
        for line in lines
        if "epochs" in line
    ]
    head = ("CIFAR-10, ResNet-20", "epochs", "updates", "validation error %", "images/s")
    return markdown((*head, "wait for data %"), rows, lines)


def input_table(lines: Sequence[Result]) -> str:
    """Images/s of the loaders by number of threads."""
    rows = []
    for line in lines:
        rates = line.get("rates")
        by_name = {"lbsgd": rates} if isinstance(rates, list) else rates or {}
        for name, values in by_name.items():
            spread = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            rows.append([line["what"], name, line["batch_size"], line["threads"], spread])
    return markdown(("images", "pipeline", "batch", "threads", "images/s"), rows, lines)


TABLES = {
    "check": check_table,
    "step": step_table,
    "profile": profile_table,
    "train": train_table,
    "input": input_table,
}
