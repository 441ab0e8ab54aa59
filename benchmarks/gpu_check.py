"""Checks that a run on the GPU is the run on the CPU: a piece of benchmarks/gpu.py.

Digits, a few updates at a constant rate, each run a process as a user starts it. A comparison is
the largest relative difference of loss and gradient norm up to an update, and its bound.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import trainings
from gpu_job import Job, check_backend, given, xla_flags

from lbsgd.run.record.metrics import read_metrics

UPDATES, SAVED_AT = 10, 5
# Few updates from the start are not chaotic, and at this rate nothing diverges.
FLAGS = [
    f"--config.{x}"
    for x in (
        "learning_rate.warmup=none",
        "learning_rate.warmup_epochs=0",
        "learning_rate.scaling=none",
        "learning_rate.decay=none",
        "learning_rate.decay_epochs=()",
        "total_epochs=0",
        f"total_steps={UPDATES}",
        "evaluation.every_epochs=0",
        "checkpoint.every_epochs=0",
        f"checkpoint.every_steps={SAVED_AT}",
        "log.every_steps=1",
    )
]
TF32 = ["--config.matmul_precision=default"]
# With the first alone XLA still chooses kernels by how fast they are at that moment.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"

# Of one update, in units of the last place: ResNet-8 has 9 layers, each a sum of 9 * 64 products at
# most and moments over n * 8 * 8 pixels, n=32. Errors add like the square root of their number;
# forwards and backwards, on two machines; and are averaged over kn=256 examples.
ROUNDING = 2 * 2 * 9 * (math.sqrt(9 * 64) + math.sqrt(32 * 64)) / math.sqrt(256)
FLOAT32 = ROUNDING * 2.0**-24  # 9e-6; TF32 has 2^-11
# Of five updates, each of which may multiply what there is by 14: ROUNDING * 2.0**-53 * 14**5.
# It holds for another order of sums too, for that is all that rounding differs by.
FLOAT64 = 1e-8


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of digits.

    Attributes:
      on: "cpu" or "gpu".
      xla_flags: besides those of this process.
    """

    on: str
    dtype: str
    flags: Sequence[str] = ()
    xla_flags: str = ""


RUNS = {
    "CPU float64": Run("cpu", "float64"),
    "GPU float64": Run("gpu", "float64"),
    "GPU float64 repeatable": Run("gpu", "float64", xla_flags=DETERMINISTIC),
    "GPU float64 repeatable in 4 steps": Run(
        "gpu", "float64", ["--config.accumulation_steps=4"], DETERMINISTIC
    ),
    "CPU float32": Run("cpu", "float32"),
    "GPU float32": Run("gpu", "float32"),
    "GPU TF32": Run("gpu", "float32", TF32),
    "GPU float32 again": Run("gpu", "float32"),
    "GPU float32 deterministic": Run("gpu", "float32", xla_flags=DETERMINISTIC),
    "GPU float32 deterministic again": Run("gpu", "float32", xla_flags=DETERMINISTIC),
}
# What is compared, up to which update, and the bound of the difference, where there is one.
COMPARISONS: dict[str, tuple[str, str, int, float | None]] = {
    "GPU = CPU, float64": ("GPU float64", "CPU float64", 5, FLOAT64),
    "4 accumulation steps = lanes, float64": (
        "GPU float64 repeatable in 4 steps",
        "GPU float64 repeatable",
        5,
        FLOAT64,
    ),
    "GPU = CPU, float32": ("GPU float32", "CPU float32", 1, FLOAT32),
    "float32 = float64, CPU": ("CPU float32", "CPU float64", 1, FLOAT32),
    "GPU, TF32 = float32": ("GPU TF32", "GPU float32", 1, None),
    "again = once, float32": ("GPU float32 again", "GPU float32", UPDATES, None),
    "again = once, float32, deterministic ops, no autotuning": (
        "GPU float32 deterministic again",
        "GPU float32 deterministic",
        UPDATES,
        0.0,
    ),
}
COMPARED = ("train_loss", "gradient_norm")
NEEDED_IN_TRIAL = [name for name in RUNS if "deterministic" not in name]


class Runs:
    """All runs, some at a time; one that fails is tried again alone, for the card may be one's."""

    def __init__(self, job: Job, pool: ThreadPoolExecutor) -> None:
        self._job = job
        self._updates: dict[str, list[dict[str, float]]] = {}
        self._begun = {name: pool.submit(self.run, name) for name in RUNS if self.has(name)}

    def has(self, name: str) -> bool:
        """Tells whether the run is one of this job's."""
        return not self._job.trial or name in NEEDED_IN_TRIAL

    def workdir(self, name: str) -> pathlib.Path:
        """Names the workdir of a run."""
        return pathlib.Path(self._job.scratch, "check", name.replace(" ", "-"))

    def run(self, name: str, of: str = "") -> list[dict[str, float]]:
        """The updates in the metrics; none where it failed.

        Args:
          of: the run in `RUNS` that is gone on with in the workdir of `name`, where it is another.
        """
        run, workdir = RUNS[of or name], self.workdir(name)
        if not of:
            shutil.rmtree(workdir, ignore_errors=True)
        on_cpu = run.on == "cpu" or self._job.trial
        environment = {**os.environ, "JAX_PLATFORMS": "cpu" if on_cpu else "cuda,cpu"}
        if run.xla_flags:
            environment["XLA_FLAGS"] = xla_flags(run.xla_flags)
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several are on one card
        flags = [*FLAGS, f"--config.dtype={run.dtype}", *run.flags]
        command = trainings.command("digits.py", flags, workdir)
        done = subprocess.run(
            command, cwd=trainings.ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode or (of and f"resumes after update {SAVED_AT}" not in done.stdout):
            print(f"{name}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}", flush=True)
            return []
        if run.on == "gpu":
            machine = json.loads((workdir / "machine.json").read_text())[-1]
            check_backend(self._job, machine["backend"])
        lines = read_metrics(workdir / "metrics.jsonl")
        return [line for line in lines if "train_loss" in line]

    def _tried(self, name: str) -> list[dict[str, float]]:
        if name not in self._updates:
            self._updates[name] = self._begun[name].result()
            if not self._updates[name]:
                for other in self._begun.values():
                    other.result()
                self._updates[name] = self.run(name)
        return self._updates[name]

    def updates(self, name: str) -> list[dict[str, float]]:
        """Gives the updates of a run, once it has ended; one that fails is not tried a third time.

        Raises:
          RuntimeError: it fails.
        """
        lines = self._tried(name)
        if not lines:
            raise RuntimeError(f"{name} fails")
        return lines


def differences(a: list[dict[str, float]], b: list[dict[str, float]]) -> list[float]:
    """Largest relative difference of loss and gradient norm up to each update."""
    worst, so_far = 0.0, []
    for x, y in zip(a, b, strict=True):
        for key in COMPARED:
            worst = max(worst, abs(x[key] - y[key]) / abs(y[key]))
        so_far.append(worst)
    return so_far


def compare(job: Job, runs: Runs, what: str) -> None:
    """Puts one comparison."""
    first, second, updates, bound = COMPARISONS[what]
    if not (runs.has(first) and runs.has(second)):
        return
    try:
        pair = runs.updates(first), runs.updates(second)
    except RuntimeError as error:
        return job.put(what, 0, failed=str(error))
    put_comparison(job, what, *pair, updates, bound)


def put_comparison(
    job: Job,
    what: str,
    a: list[dict[str, float]],
    b: list[dict[str, float]],
    updates: int,
    bound: float | None,
) -> None:
    """Puts the difference of two runs with its verdict, and the numbers that it is of."""
    by_update = differences(a, b)
    worst = by_update[updates - 1]
    verdict = {} if bound is None else {"bound": bound, "holds": worst <= bound}
    verdict["bitwise"] = worst == 0.0
    values = {key: [[x[key], y[key]] for x, y in zip(a, b, strict=True)] for key in COMPARED}
    job.put(what, 1, updates=updates, difference=worst, by_update=by_update, **values, **verdict)


def resume(job: Job, runs: Runs) -> None:
    """Compares a run that lost its last checkpoint and went on, with the run left alone."""
    what, whole = (
        "resumed = uninterrupted, float64, deterministic ops, no autotuning",
        "GPU float64 repeatable",
    )
    try:
        straight = runs.updates(whole)
    except RuntimeError as error:
        return job.put(what, 0, failed=str(error))
    resumed = f"{whole} resumed"
    workdir = runs.workdir(resumed)
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(runs.workdir(whole), workdir)
    shutil.rmtree(workdir / "checkpoints" / str(UPDATES))
    lines = runs.run(resumed, whole)
    if not lines:
        return job.put(what, 0, failed="the run does not go on")
    put_comparison(job, what, lines, straight, UPDATES, 0.0)


def whole_run(job: Job) -> None:
    """Puts the validation error of configs/digits.py; docs/results/digits.json has the CPU's."""
    short = ("total_epochs=3", "learning_rate.warmup_epochs=1", "learning_rate.decay_epochs=(2.0,)")
    flags = [f"--config.{key}" for key in short] if job.trial else []
    try:
        result = trainings.train("digits.py", flags, seed=0)
    except subprocess.CalledProcessError as error:
        return job.put("configs/digits.py", 0, failed=f"exit code {error.returncode}")
    check_backend(job, result["machine"]["backend"])
    keys = ("val_error", "train_error", "updates", "images_per_second")
    job.put("configs/digits.py", 1, **{key: result[key] for key in keys})


def main() -> None:
    """Compares one pair after the other."""
    job, _ = given()
    at_once = 2 if job.trial else max(2, len(os.sched_getaffinity(0)) // 2)
    with ThreadPoolExecutor(at_once) as pool:
        runs = Runs(job, pool)
        for what in COMPARISONS:
            compare(job, runs, what)
        resume(job, runs)
    whole_run(job)


if __name__ == "__main__":
    main()
