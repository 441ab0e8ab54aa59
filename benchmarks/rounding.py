"""Compares digits on 1 and on 8 devices, which differ by the order of sums alone.

python benchmarks/rounding.py run      runs the sweep configs/ablations/rounding.py with its 5 seeds
                                       and writes docs/results/rounding.json (some minutes on 2
                                       cores)
python benchmarks/rounding.py table    prints the table from docs/results/rounding.json
"""

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from command import run_or_table
from provenance import dated, provenance

from lbsgd.experiments import load
from lbsgd.experiments.results import Run
from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
SWEEP = "configs/ablations/rounding.py"
RESULTS = ROOT / "docs" / "results" / "rounding.json"
# Relative: by so much the losses of an update differ where two runs are said to have parted.
APART = 0.01


def run() -> None:
    """Runs the sweep, and writes of each run its error, its losses and its machine."""
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lbsgd.main", "sweep", "run", SWEEP]
        command += [f"--workdir={folder}", "--parallel=2"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, check=True)
        rows = {row.name: [_kept(x) for x in row.runs] for row in load(folder).rows}
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def _kept(run: Run) -> dict[str, Any]:
    lines = read_metrics(run.workdir / "metrics.jsonl")
    return {
        "seed": run.seed,
        "val_error": run.finals["val_error"],
        "updates": run.updates,
        "train_loss": [line["train_loss"] for line in lines if "train_loss" in line],
        "machine": dated(run.machines[-1]),
    }


def parting(one: list[float], other: list[float]) -> float:
    """The first update whose losses are `APART`, of two runs; infinity where none is."""
    pairs = enumerate(zip(one, other), 1)
    return next((t for t, (a, b) in pairs if abs(a - b) > APART * max(a, b)), math.inf)


def table() -> str:
    """Errors on 1 and 8 devices, and how far runs of one seed and of two are apart."""
    rows = json.loads(RESULTS.read_text())
    lines = [
        "| digits | updates | error %, 1 device | error %, 8 devices | rms difference, one seed on "
        "1 and on 8 | two seeds | losses 1% apart from update |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = zip(list(rows)[::2], list(rows)[1::2])
    lines += [_line(rows[one], rows[many], one.split(",")[0]) for one, many in pairs]
    return "\n".join([*lines, "", _sources([run for runs in rows.values() for run in runs])])


def _line(one: Sequence[dict[str, Any]], many: Sequence[dict[str, Any]], name: str) -> str:
    """The line of a minibatch, from its runs on one device and on many."""
    errors = [[run["val_error"] for run in runs] for runs in (one, many)]
    same = math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(*errors)))
    # The difference of two independent runs has twice the variance of one.
    seeds = math.sqrt(2 * statistics.fmean(map(statistics.variance, errors)))
    parted = [parting(a["train_loss"], b["train_loss"]) for a, b in zip(one, many)]
    when = "never" if min(parted) == math.inf else f"{min(parted):g} to {max(parted):g}"
    cells = [f"{statistics.fmean(e):.2f} ± {statistics.stdev(e):.2f}" for e in errors]
    cells += [f"{same:.2f}", f"{seeds:.2f}", when]
    return f"| {name} | {one[0]['updates']:,} | {' | '.join(cells)} |"


def _sources(runs: Sequence[dict[str, Any]]) -> str:
    """The line below the table: of how many seeds, and of which cores, versions and commits."""
    seeds = len({run["seed"] for run in runs})
    return f"n={seeds} seeds, mean ± standard deviation; {provenance(runs)}"


if __name__ == "__main__":
    run_or_table(__doc__, run, table)
