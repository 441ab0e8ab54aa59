"""A sweep of runs of seconds, its command, and what its runs left without times."""

import json
import os
import pathlib
import subprocess
import sys

from hanging import HANG_SECONDS

ROOT = pathlib.Path(__file__).parent.parent
TIMED = ("images_per_second", "data_wait_percent")

FILE = """
from lbsgd.experiments import Settings
from lbsgd.run.config import default_config


def get_config(arg=""):
    config = default_config()
    config.update(
        {{
            "batch_size": 32,
            "worker_batch_size": 16,
            "total_steps": {updates},
            "model": {{"name": "cifar_resnet8", "width": 0.25}},
            "learning_rate": {{"warmup": "none"}},
            "evaluation": {{"every_steps": 2}},
            "checkpoint": {{"every_steps": 1}},
            "log": {{"every_steps": 1, "sinks": ()}},
        }}
    )
    return config


def sweep(arg=""):
    for name, overrides in {rows}.items():
        yield name, overrides


def settings(arg=""):
    return Settings({settings})
"""

# They differ in a number, so that one compiled program serves both.
ROWS = {
    "rate=0.1": {"learning_rate.reference_learning_rate": 0.1},
    "rate=0.2, twice": {"learning_rate.reference_learning_rate": 0.2},
}


def write_sweep(
    path: pathlib.Path, rows: dict = ROWS, updates: int = 2, settings: str = "seeds=2"
) -> str:
    """Writes the config file of a sweep, and returns its path."""
    path.write_text(FILE.format(rows=repr(rows), updates=updates, settings=settings))
    return str(path)


def environment() -> dict[str, str]:
    """Of a command, one device of the CPU."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "SLURM"))}
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    return {**kept, **own, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "lbsgd.main", "sweep", "run", *words]


def start_sweep(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(*words),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_sweep(*words: str) -> tuple[int, str]:
    """The exit code, and what it said."""
    out, _ = (process := start_sweep(*words)).communicate(timeout=HANG_SECONDS)
    return process.returncode, out


def left_by(folder: pathlib.Path) -> dict[str, object]:
    """What the runs in a folder left: their metrics and results, without times."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("*/*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = [
            {key: value for key, value in line.items() if key not in TIMED} for line in lines
        ]
    for path in sorted(folder.glob("*/*/result.json")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text())
    return found
