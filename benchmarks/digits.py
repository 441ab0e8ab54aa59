"""What each part of the large-batch recipe does to digits: Goyal et al., Tables 1 and 2a, in small.

    python benchmarks/digits.py run      trains every row that docs/results/digits.json lacks, with
                                         5 seeds (all of them: about 15 minutes on 2 cores)
    python benchmarks/digits.py table    prints the table from docs/results/digits.json

Every run is a process of its own, started as a user would start it.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from lbsgd import monitor

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "digits.json"
SEEDS = range(5)

# A row changes these keys of configs/digits.py.
ROWS = {
    "kn=32, one worker: the reference": {"batch_size": 32},
    "kn=256, linear scaling, gradual warmup (configs/digits.py)": {},
    "kn=256, linear scaling, constant warmup": {"learning_rate.warmup": "constant"},
    "kn=256, linear scaling, no warmup": {"learning_rate.warmup": "none"},
    "kn=256, square-root scaling, gradual warmup": {"learning_rate.scaling": "sqrt"},
    "kn=256, the reference's learning rate": {"learning_rate.scaling": "none"},
    "kn=512, linear scaling, gradual warmup": {"batch_size": 512},
    "kn=1024, linear scaling, gradual warmup": {"batch_size": 1024},
}


def train(keys: dict[str, object], seed: int) -> dict[str, object]:
    """The result of one run."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--config.{key}={value}" for key, value in keys.items()]
        command = [sys.executable, "-m", "lbsgd.main", "--config=configs/digits.py", *flags]
        command += [f"--config.seed={seed}", "--config.log.tensorboard=False"]
        command += [f"--workdir={folder}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        workdir = pathlib.Path(folder)
        lines = monitor.read_metrics(workdir / "metrics.jsonl")
        updates = [line for line in lines if "train_loss" in line]
        return {
            "seed": seed,
            "val_error": monitor.final_error(lines),
            "train_error": statistics.fmean(line["train_error"] for line in updates[-5:]),
            "updates": updates[-1]["step"],
            "config": json.loads((workdir / "config.json").read_text())["config"],
            "machine": json.loads((workdir / "machine.json").read_text())[-1],
        }


def run() -> None:
    """Trains the rows that have no results yet, and writes them."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row, keys in ROWS.items():
        if row in results:
            continue
        results[row] = [train(keys, seed) for seed in SEEDS]
        print(row, [run["val_error"] for run in results[row]], flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table() -> str:
    """Validation error of each row, mean and standard deviation over seeds, as Markdown."""
    results = json.loads(RESULTS.read_text())
    lines = ["| digits | updates | validation error % |", "|---|---|---|"]
    for row, runs in results.items():
        errors = [run["val_error"] for run in runs]
        spread = f"{statistics.fmean(errors):.2f} ± {statistics.stdev(errors):.2f}"
        lines.append(f"| {row} | {runs[0]['updates']} | {spread} |")
    machines = [run["machine"] for runs in results.values() for run in runs]
    commits = sorted({machine["git_commit"][:10] for machine in machines})
    versions = sorted({machine["packages"]["jax"] for machine in machines})
    cores = sorted({machine["cpus"] for machine in machines})
    lines.append("")
    lines.append(
        f"n={len(SEEDS)} seeds, mean ± standard deviation; {', '.join(map(str, cores))} CPU cores, "
        f"jax {', '.join(versions)}, commits {', '.join(commits)}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        run()
    elif sys.argv[1:] != ["table"]:
        sys.exit(__doc__)
    print(table())
