"""What the order of sums does to a run: digits on 1 and on 8 devices, which differ by it alone.

python benchmarks/rounding.py run      trains every row that docs/results/rounding.json lacks,
                                       with 5 seeds (all of them: about 15 minutes on 2 cores)
python benchmarks/rounding.py table    prints the table from docs/results/rounding.json
"""

import json
import math
import os
import statistics

import trainings
from command import run_or_table

RESULTS = trainings.ROOT / "docs" / "results" / "rounding.json"
RECIPES = {
    "kn=256, gradual warmup (configs/digits.py)": [],
    "kn=1024, linear scaling, gradual warmup": ["--config.batch_size=1024"],
}
DEVICES = (1, 8)
# Relative: by so much the losses of an update differ where two runs are said to have parted.
APART = 0.01


def _row(recipe: str, devices: int) -> str:
    return f"{recipe}, {devices} {'device' if devices == 1 else 'devices'}"


def run() -> None:
    """Trains every row that has no results yet."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(max(DEVICES))}
    rows = {
        _row(recipe, devices): ["digits.py", f"--config.devices={devices}", *flags]
        for recipe, flags in RECIPES.items()
        for devices in DEVICES
    }
    trainings.run(RESULTS, rows)


def parting(one: list[float], other: list[float]) -> float:
    """The first update whose losses are `APART`, of two runs; infinity where none is."""
    pairs = enumerate(zip(one, other), 1)
    return next((t for t, (a, b) in pairs if abs(a - b) > APART * max(a, b)), math.inf)


def table() -> str:
    """Errors on 1 and 8 devices, and how far runs of one seed and of two are apart."""
    results = json.loads(RESULTS.read_text())
    lines = [
        "| digits | updates | error %, 1 device | error %, 8 devices | rms difference, one seed on "
        "1 and on 8 | two seeds | losses 1% apart from update |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
        both = [results[_row(recipe, devices)] for devices in DEVICES]
        errors = [[run["val_error"] for run in runs] for runs in both]
        same = math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(*errors)))
        # The difference of two independent runs has twice the variance of one.
        seeds = math.sqrt(2 * statistics.fmean(map(statistics.variance, errors)))
        parted = [parting(a["train_loss"], b["train_loss"]) for a, b in zip(*both)]
        when = "never" if min(parted) == math.inf else f"{min(parted):g} to {max(parted):g}"
        cells = [f"{statistics.fmean(e):.2f} ± {statistics.stdev(e):.2f}" for e in errors]
        cells += [f"{same:.2f}", f"{seeds:.2f}", when]
        lines.append(f"| {recipe} | {both[0][0]['updates']:,} | {' | '.join(cells)} |")
    runs = [run for rows in results.values() for run in rows]
    return "\n".join([*lines, "", trainings.sources(runs)])


if __name__ == "__main__":
    run_or_table(__doc__, run, table)
