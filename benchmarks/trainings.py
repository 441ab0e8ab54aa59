"""Runs of configs, and tables of their errors: what digits.py and fashion_mnist.py share.

Every run is a process of its own, started as a user would start it. Its error is what the run
itself calls its final error: the median over the final 5 epochs. The stored
results without "evaluations" were made as the median of the last 5 evaluations, or of the only one.
All of those runs had one an epoch, or one in all, with which that is the same.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
SEEDS = range(5)
# Of metrics.jsonl: how fast a run is, and how much of the time it waits for data.
SPEED = ("images_per_second", "data_wait_percent")


def command(config: str, flags: Sequence[str], workdir: pathlib.Path | str) -> list[str]:
    """What starts a run, in `ROOT`.

    Args:
      config: name and argument of a file in configs/, like "digits_growing.py:decay".
      flags: of the command line.
    """
    start = [sys.executable, "-m", "lbsgd.main", "train", f"--config=configs/{config}", *flags]
    return [*start, "--config.log.sinks=()", f"--workdir={workdir}"]


def train(config: str, flags: Sequence[str], seed: int) -> dict[str, object]:
    """The result of one run.

    Args:
      config, flags: as `command` has them.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = [f"--config.seed={seed}", "--config.log.every_steps=1"]
        started = command(config, [*flags, *own], folder)
        subprocess.run(started, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return {"seed": seed, **result_of(pathlib.Path(folder))}


def result_of(workdir: pathlib.Path) -> dict[str, object]:
    """What a run came to, at its end or before; its final error if it has ended."""
    lines = read_metrics(workdir / "metrics.jsonl")
    updates = [line for line in lines if "train_loss" in line]
    ended, result = workdir / "result.json", {}
    if ended.exists():
        result = json.loads(ended.read_text())
    late = updates[len(updates) // 2 :]  # compiled, and its pipeline full
    keys = json.loads((workdir / "config.json").read_text())["config"]
    keys["data"]["dir"] = "DIR" if keys["data"]["dir"] else ""  # of this machine only
    return {
        "train_loss": [line["train_loss"] for line in updates],
        "val_error": result.get("final"),
        "evaluations": result.get("final_evaluations"),
        "train_error": statistics.fmean(line["train_error"] for line in updates[-5:]),
        "updates": updates[-1]["step"],
        "epochs": updates[-1]["epoch"],
        **{key: statistics.median(line[key] for line in late) for key in SPEED},
        "config": keys,
        "machine": json.loads((workdir / "machine.json").read_text())[-1],
    }


def run(results_file: pathlib.Path, rows: Mapping[str, Sequence[str]], *flags: str) -> None:
    """Trains the rows that have no results yet, and writes them.

    Args:
      rows: by the name in the table, the config and flags of its own.
      flags: of all rows.
    """
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for row, (config, *own) in rows.items():
        if row in results:
            continue
        results[row] = [train(config, [*own, *flags], seed) for seed in SEEDS]
        print(row, [run["val_error"] for run in results[row]], flush=True)
        results_file.parent.mkdir(exist_ok=True)
        results_file.write_text(json.dumps(results, indent=1) + "\n")


def table(name: str, results_file: pathlib.Path, rows: Mapping[str, Sequence[str]]) -> str:
    """Validation error of each row, mean and standard deviation over seeds, as Markdown."""
    results = json.loads(results_file.read_text())
    lines = [f"| {name} | updates | validation error % |", "|---|---|---|"]
    for row in rows:
        errors = [run["val_error"] for run in results[row]]
        spread = f"{statistics.fmean(errors):.2f} ± {statistics.stdev(errors):.2f}"
        lines.append(f"| {row} | {results[row][0]['updates']:,} | {spread} |")
    lines += ["", sources([run for row in rows for run in results[row]])]
    return "\n".join(lines)


def sources(runs: Iterable[Mapping[str, Any]]) -> str:
    """The line below a table: of how many seeds, and of which cores, versions and commits."""
    machines = [run["machine"] for run in runs]
    commits = sorted({machine["git_commit"][:10] for machine in machines})
    versions = sorted({machine["packages"]["jax"] for machine in machines})
    cores = sorted({machine["cpus"] for machine in machines})
    return (
        f"n={len(SEEDS)} seeds, mean ± standard deviation; {', '.join(map(str, cores))} CPU cores, "
        f"jax {', '.join(versions)}, commits {', '.join(commits)}."
    )
