"""Starts runs of configs as a user would start them, and reads what they came to.

What gpu_check.py and gpu_train.py share. The error of a run is what the run itself calls its final
error: the median over the final 5 epochs.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
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
