"""`lbsgd train --workdir X` resumes the run there, the same number for number."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from hanging import HANG_SECONDS

from lbsgd.checkpoint import store
from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
RUN = [
    "--config=configs/digits.py",
    "--config.seed=7",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.total_steps=8",
    "--config.learning_rate.warmup_epochs=0.3",
    "--config.learning_rate.decay_epochs=(1.0, 1.3)",
    "--config.checkpoint.every_epochs=0",
    "--config.checkpoint.every_steps=4",
    "--config.log.sinks=()",
]
SPEED = {"images_per_second", "data_wait_percent"}
LAUNCHER = ["launch", "--num_processes=2", "--platform=cpu", "--max_restarts=0", "--"]


def lbsgd(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lbsgd.main", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(workdir: pathlib.Path) -> tuple:
    """All that a run computed: checksums of its last state, metrics, and its config."""
    arrays = store.read_manifest(workdir / "checkpoints" / "8").arrays
    metrics = [
        {key: value for key, value in line.items() if key not in SPEED}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]
    config = json.loads((workdir / "config.json").read_text())
    return {name: entry.sha256 for name, entry in arrays.items()}, metrics, config


@pytest.mark.long
@pytest.mark.parametrize("start", [["train"], LAUNCHER], ids=["alone", "two processes"])
def test_a_workdir_alone_resumes_its_run_bitwise(start, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    lbsgd(*start, *RUN, f"--workdir={whole}")
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "8")
    out = lbsgd(*start, f"--workdir={stopped}")
    assert "resumes after update 4" in out
    assert numbers(stopped) == numbers(whole)
    assert "is complete: 8 updates are done" in lbsgd(*start, f"--workdir={stopped}")
