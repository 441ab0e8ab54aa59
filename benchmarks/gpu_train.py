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
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import trainings
from gpu_job import Job, check_backend, given

from lbsgd.data.images.decode import decode
from lbsgd.data.packed import reader
from lbsgd.data.prepare import open_input
from lbsgd.data.source import Example, Source
from lbsgd.run.record.metrics import read_metrics
from lbsgd.system.errors import ConfigError

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
# Of a run: the least to start and compile in; and to save its state when stopped.
START_SECONDS, STOP_SECONDS = 30, 10
PROBE_UPDATES = 800
# At most, of a row.
EVALUATIONS, VALIDATION_EXAMPLES = 5, 10_000


def arrays(job: Job) -> pathlib.Path | None:
    """A folder of CIFAR-10 as arrays, decoded once where it is of another form; None without it."""
    found = job.find("cifar10", ".zip", ".tar")
    if not found or is_ready(found):
        return found
    folder = pathlib.Path(job.scratch, "cifar10")
    folder.mkdir(parents=True, exist_ok=True)
    for split, source in open_splits(found).items():
        if not (folder / f"{split}.npz").exists():
            examples = [source[index] for index in range(len(source))]
            images = [decode(x.image) if isinstance(x.image, bytes) else x.image for x in examples]
            part = folder / "part.npz"
            np.savez(part, images=np.stack(images), labels=np.array([x.label for x in examples]))
            part.rename(folder / f"{split}.npz")
    return folder


def is_ready(folder: pathlib.Path) -> bool:
    """Whether it has arrays of both splits, as data.source=npz reads them."""
    both = all((folder / f"{split}.npz").exists() for split in reader.SPLITS)
    return both and "images" in np.load(folder / "train.npz")


def encoded(path: pathlib.Path) -> list[Example]:
    """Examples of an npz file of image files: `jpeg`, the bytes of all, `offsets` and `labels`."""
    with np.load(path) as arrays:
        data, offsets, labels = (arrays[key] for key in ("jpeg", "offsets", "labels"))
    ends = zip(offsets[:-1], offsets[1:], labels, strict=True)
    return [Example(data[start:end].tobytes(), int(label)) for start, end, label in ends]


def open_splits(path: pathlib.Path) -> Mapping[str, Sequence[Example] | Source]:
    """The splits of encoded arrays, of a set of `lbsgd prepare` or of what it makes one of.

    Raises:
      ConfigError: it is none of them.
    """
    train = path / "train.npz"
    if train.exists() and {"jpeg", "offsets"} <= set(np.load(train)):
        return {"train": encoded(train), "validation": encoded(path / "test.npz")}
    if (path / "train" / reader.INDEX).exists():
        return {split: reader.PackedSource(path / split) for split in reader.SPLITS}
    splits = open_input(path, None)
    missing = set(reader.SPLITS) - set(splits)
    if missing:
        raise ConfigError(f"{path} has no {missing.pop()} split, only {', '.join(splits)}")
    return splits


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
    """Names the workdir of a run."""
    return pathlib.Path(job.scratch, "train", name.replace(" ", "-"))


def last_lines(output: str) -> list[str]:
    """Gives the end of what a run printed, for whoever looks for what went wrong."""
    return output.strip().splitlines()[-5:]


class Speed(NamedTuple):
    """What a run takes.

    Attributes:
      rate: images/s of its updates.
      other: seconds of all else: to start, compile, evaluate once and save.
    """

    rate: float
    other: float


def probe(job: Job, flags: list[str], what: str) -> Speed | None:
    """Puts how fast some updates at kn=128 are, with an evaluation at their end."""
    began = time.monotonic()
    steady = ["warmup=none", "warmup_epochs=0", "decay=none", "decay_epochs=()"]
    flags = [*flags, *(f"--config.learning_rate.{key}" for key in steady)]
    flags += ["--config.total_epochs=0", f"--config.total_steps={PROBE_UPDATES}"]
    flags += ["--config.evaluation.every_epochs=0", "--config.checkpoint.every_epochs=0"]
    code, output = start(job, "cifar10.py:batch=128", flags, what, job.left - STOP_SECONDS)
    path = workdir_of(job, what) / "metrics.jsonl"
    lines = [x for x in read_metrics(path) if "images_per_second" in x]
    if not lines:
        job.put(what, 0, failed=f"exit code {code}", output=last_lines(output))
        return None
    late = lines[len(lines) // 2 :]
    speed = {key: statistics.median(x[key] for x in late) for key in trainings.SPEED}
    rate = speed["images_per_second"]
    other = time.monotonic() - began - lines[-1]["step"] * 128 / rate
    job.put(what, len(late), other_seconds=other, **speed)
    return Speed(rate, max(0.0, other))


def epochs_for(seconds: float, speed: Speed) -> int:
    """How many epochs two rows can have in `seconds`.

    An evaluation is counted at the rate of training, which has a backward pass besides.
    """
    evaluations = (EVALUATIONS - 1) * VALIDATION_EXAMPLES / speed.rate
    training = seconds / PLANNED_ROWS - STOP_SECONDS - speed.other - evaluations
    return max(1, min(EPOCHS, int(training * speed.rate / EXAMPLES)))


def row_flags(epochs: int) -> list[str]:
    """A warmup of at most a quarter of the epochs, few evaluations, metrics of few updates too."""
    keys = (
        f"learning_rate.warmup_epochs={min(5.0, epochs / 4)}",
        f"evaluation.every_epochs={max(1.0, epochs / EVALUATIONS)}",
        "checkpoint.every_epochs=0",
        "log.every_steps=10",
    )
    return [f"--config.{key}" for key in keys]


def train(job: Job, name: str, config: str, flags: list[str], epochs: int | None) -> None:
    """Puts a row: error, speed and how far it came."""
    code, output = start(job, config, flags, name, job.left - STOP_SECONDS - 2)
    shown = [flag for flag in flags if "data.dir" not in flag]  # which is of this machine only
    asked = {"config": config, "flags": shown, "epochs_asked": epochs, "ended": code == 0}
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
    check_backend(job, result["machine"]["backend"])
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
        return job.put("CIFAR-10", 0, skipped="no cifar10 in --data")
    data = ["--config.data.source=npz", f"--config.data.dir={folder}", "--config.dtype=bfloat16"]
    speed = probe(job, data, "kn=128, images/s")
    if not speed:
        return
    epochs = epochs_for(job.left, speed)
    for name, (config, flags) in ROWS.items():
        if job.left < START_SECONDS + STOP_SECONDS:
            break
        train(job, name, f"{config},epochs={epochs}", [*data, *flags, *row_flags(epochs)], epochs)


if __name__ == "__main__":
    main()
