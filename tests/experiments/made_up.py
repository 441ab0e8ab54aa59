"""Folders of sweeps whose runs were never trained: their files say what a test wants them to."""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.outcome import note_failure
from lbsgd.experiments.settings import Settings
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.run.config import default_config

UPDATES_PER_EPOCH = 10
MACHINE = {
    "python": "3.11.7",
    "packages": {"lbsgd": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
    "cpus": 2,
    "backend": "cpu",
    "device": "cpu",
    "devices": 1,
    "processes": 1,
    "git_commit": "29c466394d4d6c7f38553f9c767aab790d4166d7",
}
METRICS = {
    "val_error": {"unit": "%", "rises": False, "words": "error"},
    "val_loss": {"unit": "", "rises": False, "words": "loss"},
}


def sweep_of(rows: Mapping[str, Mapping[str, Any]], **settings: Any) -> Sweep:
    """A sweep on digits of rows by name."""
    base = default_config()
    base.update_from_flattened_dict(
        {"data.source": "digits", "data.crop": "padded", "worker_batch_size": 32, "total_epochs": 9}
    )
    made = tuple(Row(name, dict(overrides)) for name, overrides in rows.items())
    return Sweep("made_up.py", base, made, Settings(**settings))


def begin(sweep: Sweep, path: pathlib.Path) -> SweepFolder:
    folder = SweepFolder(path)
    folder.describe(sweep)
    return folder


def write_run(
    sweep: Sweep,
    folder: SweepFolder,
    row: str,
    seed: int,
    errors: Sequence[float | None],
    *,
    ends: str = "complete",
    losses: Sequence[float] = (),
) -> pathlib.Path:
    """A run evaluated at the end of each epoch, whose training error is 5 less.

    Args:
      ends: "complete", "unfinished", or why it diverged.
      losses: of its updates; by default they follow its errors.
    """
    (found,) = [r for r in sweep.rows if r.name == row]
    workdir = folder.seed(found, seed)
    workdir.mkdir(parents=True)
    config = {**_config(sweep, found), "seed": seed}
    described = {"run": {}, "validation_set": "digits", "config": config}
    (workdir / "config.json").write_text(json.dumps(described))
    (workdir / "machine.json").write_text(json.dumps([MACHINE]))
    (workdir / "explanation.txt").write_text(
        f"minibatch: kn={config['batch_size']}\nlearning rate: <b>{seed}</b>\n"
    )
    lines = _lines(errors, losses)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ends != "unfinished":
        result = _result(lines, ends)
        (workdir / "result.json").write_text(json.dumps(result))
    return workdir


# Resolving a config takes its time.
_CONFIGS: dict[str, dict[str, Any]] = {}


def _config(sweep: Sweep, row: Row) -> dict[str, Any]:
    key = json.dumps(dict(row.overrides))
    if key not in _CONFIGS:
        _CONFIGS[key] = json.loads(sweep.config(row, 0).to_json_best_effort())
    return _CONFIGS[key]


def _lines(errors: Sequence[float | None], losses: Sequence[float]) -> list[dict[str, Any]]:
    lines = []
    for epoch, error in enumerate(errors, 1):
        for step in range((epoch - 1) * UPDATES_PER_EPOCH + 1, epoch * UPDATES_PER_EPOCH + 1):
            loss = losses[step - 1] if losses else (error or 90.0) / 40
            lines.append(
                {
                    "step": step,
                    "epoch": step / UPDATES_PER_EPOCH,
                    "train_error": max((error or 90.0) - 5, 0.1),
                    "train_loss": loss,
                    "images_per_second": 100.0,
                    "data_wait_percent": 0.5,
                }
            )
        loss = None if error is None else error / 40
        lines.append({"step": step, "epoch": float(epoch), "val_error": error, "val_loss": loss})
    return lines


def _result(lines: list[dict[str, Any]], ends: str) -> dict[str, Any]:
    finals = {}
    for name, described in METRICS.items():
        last = [line[name] for line in lines if name in line][-5:]
        finite = [value for value in last if value is not None]
        if finite:
            finals[name] = {"final": statistics.median(finite), **described}
    found = {
        "updates": lines[-1]["step"],
        "epochs": lines[-1]["epoch"],
        "complete": ends == "complete",
        "headline": "val_error",
        "final": finals["val_error"]["final"] if finals else None,
        "final_evaluations": 5,
        "target": None,
        "metrics": finals,
    }
    return found if ends == "complete" else {**found, "diverged": ends}


def falling(final: float, epochs: int = 9, seed: int = 0) -> list[float]:
    """Errors that fall from 90 to about `final`, at which the last five evaluations stand."""
    noise = np.random.default_rng(seed).normal(0, 0.01 * final, epochs)
    fall = (90 - final) * np.exp(-np.arange(epochs)) * (np.arange(epochs) < epochs - 5)
    return [float(final + a + b) for a, b in zip(fall, noise)]


def goyal_table1(path: pathlib.Path) -> SweepFolder:
    """A sweep with all that can become of its runs, after Table 1 of Goyal et al. 2017."""
    rows = {
        "kn=256, baseline": {"batch_size": 256},
        "kn=8k, no warmup": {"batch_size": 8192, "learning_rate.warmup": "none"},
        "kn=8k, constant warmup": {"batch_size": 8192, "learning_rate.warmup": "constant"},
        "kn=8k, gradual warmup": {"batch_size": 8192},
        "kn=64k | <script>alert(1)</script> *wrong*": {"batch_size": 65536},
        "kn=128k": {"batch_size": 131072},
    }
    sweep = sweep_of(
        rows, seeds=5, columns=("batch_size", "learning_rate.warmup"), against="batch_size"
    )
    folder = begin(sweep, path)
    means = dict(zip(rows, (23.60, 24.84, 25.88, 23.74)))
    for name, mean in means.items():
        for seed in range(5):
            if (name, seed) == ("kn=8k, constant warmup", 4):
                continue  # missing
            spread = 0.12 if "warmup" not in name else 0.37
            errors = falling(mean + spread * (seed - 2) * 0.6, seed=seed + len(name))
            if (name, seed) == ("kn=8k, no warmup", 3):
                reason = "loss or gradient were not finite for 10 updates, from 12 on"
                write_run(sweep, folder, name, seed, [91.0, None], ends=reason)
            elif (name, seed) == ("kn=8k, gradual warmup", 4):
                write_run(sweep, folder, name, seed, errors[:4], ends="unfinished")
            else:
                write_run(sweep, folder, name, seed, errors)
    wrong = "kn=64k | <script>alert(1)</script> *wrong*"
    write_run(sweep, folder, wrong, 0, falling(33.96))
    note_failure(folder.seed(sweep.rows[4], 1), "out of memory: <b>8 GiB</b> wanted")
    for seed in range(5):
        write_run(sweep, folder, "kn=128k", seed, [89.0, 90.0, None], ends="loss is not finite")
    return folder
