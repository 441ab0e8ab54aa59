"""The loader by number of threads on a machine with a GPU: a piece of benchmarks/gpu.py.

python gpu_input.py JOB

ImageNet's JPEGs as in benchmarks/input_pipeline.py, each number of threads on as many cores, beside
PyTorch's DataLoader where it is there; then CIFAR-10's small images, of lbsgd alone, on all cores.
"""

import argparse
import functools
import os
import pathlib
import signal
import statistics
import sys
from typing import NamedTuple

import numpy as np
from gpu_job import Job, given
from gpu_train import arrays
from input_pipeline import PIPELINES, describe, measure_with, missing_peers
from input_pipeline_child import Task, timed
from input_pipeline_data import lay_out, write_truth
from input_pipeline_ours import build_run
from PIL import Image

CHOSEN = ("lbsgd, packed", "lbsgd, raw of at most 400", "PyTorch DataLoader, Pillow")
LEAST_SECONDS = 20


def thread_counts() -> list[int]:
    """The most telling first: all cores, one, and between."""
    cores = len(os.sched_getaffinity(0))
    return list(dict.fromkeys([cores, 1, *(n for n in (4, 8) if n < cores)]))


class Photographs(NamedTuple):
    """JPEGs as benchmarks/input_pipeline.py wants them.

    Attributes:
      scratch: where they have been laid out.
      images: how many there are.
    """

    scratch: pathlib.Path
    images: int


def lay_out_photographs(job: Job) -> Photographs | None:
    """Makes them ready; None where there are none."""
    data = job.find("imagenet", ".tar") or (job.trial and random_photographs(job))
    if not data:
        job.put("JPEGs", 0, skipped="no imagenet in --data")
        return None
    scratch = pathlib.Path(job.scratch, "input")
    scratch.mkdir(parents=True, exist_ok=True)
    return Photographs(scratch, write_truth(lay_out(data, scratch), scratch / "truth.npz"))


def measure_photographs(job: Job, there: Photographs, threads: int) -> None:
    """Puts images/s of whole pipelines with so many threads on as many cores."""
    missing = missing_peers("")
    chosen = {key: PIPELINES[key] for key in CHOSEN if PIPELINES[key].package not in missing}
    images, batch_size, rounds = (16, 16, 1) if job.trial else (256, 64, 3)
    args = argparse.Namespace(images=images, batch_size=batch_size, rounds=rounds, ffcv_python="")
    measured = measure_with(threads, chosen, args, there.scratch)
    job.put(
        "JPEGs",
        rounds,
        threads=threads,
        images=there.images,
        batch_size=batch_size,
        images_per_second={key: statistics.median(x) for key, x in measured["rates"].items()},
        machine=machine(),
        **measured,
    )


def random_photographs(job: Job) -> pathlib.Path:
    """A folder of two classes of JPEGs, one dark and one bright, for a trial."""
    random, folder = np.random.default_rng(0), pathlib.Path(job.scratch, "photographs")
    for label, (low, colour) in enumerate(((0, (60, 0, 0)), (150, (0, 0, 60)))):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            pixels = random.integers(low, low + 40, (256, 256, 3)) + np.array(colour)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / str(label) / f"{label}_{number}.JPEG", quality=90)
    return folder


def machine() -> dict[str, object]:
    """Picks what the loader depends on from the machine's description: processor and packages."""
    there = describe()
    return {key: there[key] for key in ("processor", "packages") if key in there}


def measure_small_images(job: Job, folder: pathlib.Path, size: int, threads: int) -> None:
    """Puts images/s of CIFAR-10 in minibatches of `size`, of one worker."""
    crop = {"crop": "padded", "crop_padding": 4, "flip": True}
    run = build_run(str(folder), "npz", size, size, threads=threads, **crop)
    task = Task("npz", str(folder), "", threads, size, 4 if job.trial else 20_000 // size)
    rates = []
    for number in range(1 if job.trial else 3):
        start, batches = number * task.batches, task.batches + 2 * task.edge
        rates.append(timed(run.feed.train_batches().between(start, start + batches), task))
    job.put(
        "CIFAR-10",
        len(rates),
        threads=threads,
        batch_size=size,
        rates=rates,
        images_per_second=statistics.median(rates),
        machine=machine(),
    )


def random_arrays(job: Job) -> pathlib.Path:
    """A folder of arrays like CIFAR-10's, for a trial."""
    random, folder = np.random.default_rng(0), pathlib.Path(job.scratch, "arrays")
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        images = random.integers(0, 256, (64, 32, 32, 3), np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.arange(64) % 10)
    return folder


def main() -> None:
    """Measures photographs on all cores and on one, small images, and then the rest."""
    job, _ = given()
    # So that its children, which are stopped between their rounds, are ended with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    counts, there = thread_counts(), lay_out_photographs(job)
    photographs = [functools.partial(measure_photographs, job, there, n) for n in counts if there]
    folder = random_arrays(job) if job.trial else arrays(job)
    if not folder:
        job.put("CIFAR-10", 0, skipped="no cifar10 in --data")
    small = [
        functools.partial(measure_small_images, job, folder, size, n)
        for size in ((16,) if job.trial else (128, 1024))
        for n in counts
        if folder
    ]
    for measure in [*photographs[:2], *small, *photographs[2:]]:
        if job.left < LEAST_SECONDS:
            break
        measure()


if __name__ == "__main__":
    main()
