"""CIFAR-10 with small and large minibatches on the GPU: a piece of benchmarks/gpu.py.

python gpu_train.py JOB

A short run says how fast the smallest minibatch is, and so how many epochs the two most telling
rows can have in the time there is; all rows have as many. A run that is out of time is stopped and
says how far it came.
"""

import pathlib
import shutil
import signal
import statistics
import subprocess

import numpy as np
import trainings
from gpu_job import Job, given

from lbsgd import monitor
from lbsgd.config import default_config
from lbsgd.data import packed
from lbsgd.data.catalogue import build_sources
from lbsgd.data.decode import decode

EXAMPLES, EPOCHS = 50_000, 164
# The most telling first: the same epochs in 64 times fewer updates, and what holds the error.
ROWS = {
    "kn=128": ("cifar10.py:batch=128", []),
    "kn=8192, linear scaling, gradual warmup": ("cifar10.py:batch=8192", []),
    "kn=1024, linear scaling, gradual warmup": ("cifar10.py:batch=1024", []),
    "kn=8192, LARS": ("cifar10_lars.py:batch=8192", []),
    "kn=8192, linear scaling, no warmup": (
        "cifar10.py:batch=8192",
        ["--config.learning_rate.warmup=none"],
    ),
}
PLANNED_ROWS = 2
# Of a run: to start and compile, to say nothing of its updates; and to save its state when stopped.
START_SECONDS, STOP_SECONDS = 30, 10
PROBE_UPDATES = 800


def arrays(job: Job) -> pathlib.Path:
    """CIFAR-10 as arrays, decoded once, of whatever form it has; returns the folder."""
    found = job.find("cifar10")
    if not found or (found / "train.npz").exists():
        return found
    folder = pathlib.Path(job.scratch, "cifar10")
    folder.mkdir(parents=True, exist_ok=True)
    config = default_config().data
    config.dir = str(found)
    config.source = "packed" if (found / "train" / packed.INDEX).exists() else "folder"
    for split, source in zip(packed.SPLITS, build_sources(config)):
        examples = [source[index] for index in range(len(source))]
        pixels = (decode(x.image) if isinstance(x.image, bytes) else x.image for x in examples)
        labels = np.array([example.label for example in examples])
        np.savez(folder / f"{split}.npz", images=np.stack(list(pixels)), labels=labels)
    return folder


def start(job: Job, config: str, flags: list[str], name: str, limit: float) -> tuple[int, str]:
    """Exit code and output of a run, which is stopped after `limit` seconds."""
    workdir = workdir_of(job, name)
    shutil.rmtree(workdir, ignore_errors=True)
    run = subprocess.Popen(
        trainings.command(config, flags, workdir),
        cwd=trainings.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = run.communicate(timeout=max(1.0, limit))
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGTERM)  # it saves its state and ends
        try:
            output, _ = run.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            run.kill()
            output, _ = run.communicate()
    return run.returncode, output


def workdir_of(job: Job, name: str) -> pathlib.Path:
    """Of a run."""
    return pathlib.Path(job.scratch, "train", name.replace(" ", "-"))


def last_lines(output: str) -> list[str]:
    """Of what a run printed, for whoever looks for what went wrong."""
    return output.strip().splitlines()[-5:]


def probe(job: Job, flags: list[str], what: str) -> float | None:
    """Puts images/s of some updates at kn=128, and returns them."""
    steady = ["warmup=none", "warmup_epochs=0", "decay=none", "decay_epochs=()"]
    flags = [*flags, *(f"--config.learning_rate.{key}" for key in steady)]
    flags += ["--config.total_epochs=0", f"--config.total_steps={PROBE_UPDATES}"]
    flags += ["--config.evaluation.every_epochs=0", "--config.checkpoint.every_epochs=0"]
    code, output = start(job, "cifar10.py:batch=128", flags, what, job.left - STOP_SECONDS)
    path = workdir_of(job, what) / "metrics.jsonl"
    lines = [x for x in monitor.read_metrics(path) if "images_per_second" in x]
    if not lines:
        job.put(what, 0, failed=f"exit code {code}", output=last_lines(output))
        return None
    late = lines[len(lines) // 2 :]
    speed = {key: statistics.median(x[key] for x in late) for key in trainings.SPEED}
    job.put(what, len(late), **speed)
    return speed["images_per_second"]


def epochs_for(seconds: float, rate: float) -> int:
    """How many epochs at images/s `rate` two rows can have in `seconds`."""
    training = seconds / PLANNED_ROWS - START_SECONDS
    return max(1, min(EPOCHS, int(training * rate / EXAMPLES)))


def row_flags(epochs: int) -> list[str]:
    """A warmup of at most a quarter of the epochs, and some metrics of few updates too."""
    warmup = f"--config.learning_rate.warmup_epochs={min(5.0, epochs / 4)}"
    return [warmup, "--config.log.every_steps=10"]


def train(job: Job, name: str, config: str, flags: list[str], epochs: int | None) -> None:
    """Puts a row: error, speed and how far it came."""
    code, output = start(job, config, flags, name, job.left - STOP_SECONDS - 2)
    asked = {"config": config, "flags": flags, "epochs_asked": epochs, "ended": code == 0}
    try:
        result = trainings.result_of(workdir_of(job, name))
    except (
        OSError,
        ValueError,
        IndexError,
        KeyError,
    ) as error:  # statistics' errors are ValueErrors
        job.put(name, 0, **asked, failed=f"exit code {code}, {error!r}", output=last_lines(output))
        return
    keys = ("val_error", "train_error", "updates", "epochs", *trainings.SPEED)
    job.put(name, 1, **asked, seeds=1, **{key: result[key] for key in keys})


def main() -> None:
    """Trains one row after the other while there is time."""
    job, _ = given()
    if job.trial:
        for name, (config, flags) in list(ROWS.items())[:PLANNED_ROWS]:
            train(job, name, f"{config},smoke", flags, None)
        return
    folder = arrays(job)
    if not folder:
        return job.put("CIFAR-10", 0, skipped="no folder cifar10 in --data")
    data = ["--config.data.source=npz", f"--config.data.dir={folder}", "--config.dtype=bfloat16"]
    rate = probe(job, data, "kn=128, images/s")
    if not rate:
        return
    epochs = epochs_for(job.left, rate)
    for name, (config, flags) in ROWS.items():
        if job.left < START_SECONDS + STOP_SECONDS:
            break
        train(job, name, f"{config},epochs={epochs}", [*data, *flags, *row_flags(epochs)], epochs)


if __name__ == "__main__":
    main()
