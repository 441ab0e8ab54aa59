"""Measures the time from the command to the first update: a first start of a config, and its next.

    python benchmarks/start.py run       measures, and writes docs/results/start.json
    python benchmarks/start.py run 3     each start so often
    python benchmarks/start.py table     prints the table from it

Each start is `lbsgd train` in a process of its own, with the user's cache folder empty (first) or
as the first has left it (second), in turns. Files and Python's bytecode were read once before.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from command import run_or_table
from provenance import measured_on, provenance

HERE = pathlib.Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results" / "start.json"
REPEATS = 5
# A recipe; or of `synthetic_config`: network, image size, kn, n, compute type.
CASES = {
    "digits": None,
    "cifar_resnet20": ("cifar_resnet20", 32, 128, 32, "float32"),
    "resnet50": ("resnet50", 64, 16, 4, "float32"),
}
ONE_UPDATE = {
    "total_epochs": 0,
    "total_steps": 1,
    "learning_rate.warmup": "none",
    "log.every_steps": 1,
    "log.sinks": "tensorboard,start:FirstUpdate",
}
FILE = """
from synthetic import synthetic_config

def get_config(arg=""):
    return synthetic_config(*{case!r})
"""


class FirstUpdate:
    """Ends the run when the metrics of its first update are there, and leaves the time."""

    def __init__(self, folder, config):
        self.file = folder / "first_update"

    def __call__(self, step, values):
        self.file.write_text(str(time.time()))
        os._exit(0)  # the evaluation and the checkpoint that follow are not the start


def seconds_to_first_update(name, cache, folder):
    """Starts a run in a process of its own, and returns the time that its first update took."""
    config = name
    if CASES[name]:
        config = str(folder / f"{name}.py")
        pathlib.Path(config).write_text(FILE.format(case=CASES[name]))
    names = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": paths}
    workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))
    flags = [f"--config.{key}={value}" for key, value in ONE_UPDATE.items()]
    words = ["train", "--config", config, *flags, "--workdir", str(workdir)]
    start = time.time()
    subprocess.run(
        [sys.executable, "-m", "lbsgd.main", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return float((workdir / "first_update").read_text()) - start


def measure(name, repeats):
    """Seconds of first and of second starts."""
    found = {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        seconds_to_first_update(name, folder / "before", folder)  # so that files are in memory
        for repeat in range(repeats):
            for rows in found.values():
                rows.append(seconds_to_first_update(name, folder / f"cache{repeat}", folder))
    return found


def run(repeats=REPEATS):
    """Measures every case, and keeps what was measured on other backends."""
    machine = measured_on()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    results = [r for r in results if r["machine"]["backend"] != machine["backend"]]
    for name, case in CASES.items():
        found = measure(name, int(repeats))
        results.append({"name": name, "case": case, "n": int(repeats), **found, "machine": machine})
        print(name, {key: round(statistics.median(found[key]), 1) for key in found}, flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table():
    """Medians with ranges, and the ratio of neighbouring starts, as Markdown."""
    head = "| config | pixels | kn | n | device | first start, s | second start, s | ratio |"
    lines = [head, "|---" * 8 + "|"]
    results = json.loads(RESULTS.read_text())
    for result in results:
        pixels, kn, n = result["case"][1:4] if result["case"] else ("8", "256", "32")
        ratios = [b / a for a, b in zip(result["first"], result["second"])]
        spreads = [spread(result[key], ".1f") for key in ("first", "second")]
        cells = [result["name"], pixels, kn, n, result["machine"]["device"]]
        lines.append("| " + " | ".join(map(str, [*cells, *spreads, spread(ratios, ".2f")])) + " |")
    counts = {len(result["first"]) for result in results}
    return "\n".join([*lines, "", provenance(results, *counts)])


def spread(values, form):
    """Median and range of numbers."""
    texts = [format(x, form) for x in (statistics.median(values), min(values), max(values))]
    return "{} ({} to {})".format(*texts)


if __name__ == "__main__":
    run_or_table(__doc__, run, table, arguments=min(1, max(0, len(sys.argv) - 2)))
