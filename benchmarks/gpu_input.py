"""The loader by number of threads on a machine with a GPU: a piece of benchmarks/gpu.py.

python gpu_input.py JOB

ImageNet's JPEGs as in benchmarks/input_pipeline.py, each number of threads on as many cores, beside
PyTorch's DataLoader where it is there; then CIFAR-10's small images, of lbsgd alone, on all cores.
"""

import argparse
import os
import pathlib
import signal
import statistics
import sys

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


def photographs(job: Job) -> None:
    """Puts images/s of whole pipelines on JPEGs for each number of threads."""
    data = job.find("imagenet", "imagenet.tar") or (job.trial and random_photographs(job))
    if not data:
        return job.put("JPEGs", 0, skipped="no folder imagenet or imagenet.tar in --data")
    scratch = pathlib.Path(job.scratch, "input")
    scratch.mkdir(parents=True, exist_ok=True)
    images = write_truth(lay_out(data, scratch), scratch / "truth.npz")
    missing = missing_peers("")
    chosen = {key: PIPELINES[key] for key in CHOSEN if PIPELINES[key].package not in missing}
    size = (16, 16, 1) if job.trial else (256, 64, 3)
    args = argparse.Namespace(**dict(zip(("images", "batch_size", "rounds"), size)), ffcv_python="")
    for threads in thread_counts():
        if job.left < LEAST_SECONDS:
            break
        measured = measure_with(threads, chosen, args, scratch)
        medians = {key: statistics.median(rates) for key, rates in measured["rates"].items()}
        job.put(
            "JPEGs",
            args.rounds,
            threads=threads,
            images=images,
            batch_size=args.batch_size,
            images_per_second=medians,
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
    """What of the description of the machine is of the loader: the processor and the packages."""
    there = describe()
    return {key: there[key] for key in ("processor", "packages") if key in there}


def small_images(job: Job) -> None:
    """Puts images/s of CIFAR-10 by minibatch and number of threads."""
    folder = random_arrays(job) if job.trial else arrays(job)
    if not folder:
        return job.put("CIFAR-10", 0, skipped="no folder cifar10 in --data")
    crop = {"crop": "padded", "crop_padding": 4, "flip": True}
    for size in (16,) if job.trial else (128, 1024):
        for threads in thread_counts():
            if job.left < LEAST_SECONDS / 2:
                return
            run = build_run(str(folder), "npz", size, size, threads=threads, **crop)
            task = Task("npz", str(folder), "", threads, size, 4 if job.trial else 50_000 // size)
            rates = []
            for number in range(1 if job.trial else 3):
                batches, start = task.batches + 2 * task.edge, number * task.batches
                rates.append(timed(run.train_batches().between(start, start + batches), task))
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
    """Measures photographs, then small images."""
    job, _ = given()
    # So that its children, which are stopped between their rounds, are ended with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    photographs(job)
    small_images(job)


if __name__ == "__main__":
    main()
