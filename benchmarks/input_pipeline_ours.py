"""lbsgd's pipeline, and grain's around its decoder, for benchmarks/input_pipeline.py.

python input_pipeline_ours.py first_batch DIR    seconds to the first batch of a packed set
python input_pipeline_ours.py memory DIR         memory while batches of it are loaded
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
from input_pipeline_child import SHAPE, Batches, Task, random_box, serve

BATCHES, EVERY = 20_000, 1_000


def build_run(folder: str, source: str, batch_size: int, worker_batch_size: int, **data: object):
    """The run that trains on this folder, with a network of little work to build."""
    from lbsgd.run.build import build
    from lbsgd.run.config import default_config, resolve

    config = default_config()
    config.update(
        {
            "batch_size": batch_size,
            "worker_batch_size": worker_batch_size,
            "total_steps": 10**6,
            "devices": 1,
            "model": {"name": "cifar_resnet8"},
            "learning_rate": {"warmup": "none", "decay": "none", "scaling": "none"},
            "data": {"source": source, "dir": folder, **data},
        }
    )
    return build(resolve(config))


def ours(task: Task, source: str) -> Callable[[int], Batches]:
    """The batches of a run, on its device (the CPU), one worker of kn examples."""
    size = task.batch_size
    crop = {"crop": "inception", "image_size": SHAPE[0], "flip": True}
    run = build_run(task.data, source, size, size, threads=task.workers, **crop)
    train = run.feed.train_batches()

    def batches(number: int) -> Batches:
        start = number * task.examples // size
        for batch in train.between(start, start + task.examples // size):
            images, labels = np.asarray(batch["image"]), np.asarray(batch["label"])
            yield images.reshape(size, *SHAPE, 3), labels.reshape(size)

    return batches


class Files:
    """A packed set for grain: bytes and label; opened where it is read, so that it can be sent."""

    def __init__(self, folder: str) -> None:
        self.folder, self.source = folder, None

    def _open(self):
        from lbsgd.data.packed.reader import PackedSource

        self.source = self.source or PackedSource(pathlib.Path(self.folder, "train"))
        return self.source

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return tuple(self._open()[int(index)])

    def __getstate__(self):
        return {"folder": self.folder, "source": None}


def crop_and_flip(
    example: tuple[bytes, int], random: np.random.Generator
) -> tuple[np.ndarray, int]:
    """The view of one example."""
    from lbsgd.data.images.decode import decode, image_size
    from lbsgd.data.images.resize import Box

    data, label = example
    image = decode(data, Box(*random_box(*image_size(data), random.uniform)), SHAPE)
    return (np.fliplr(image) if random.random() < 0.5 else image), label


def grain_batches(task: Task, processes: bool) -> Callable[[int], Batches]:
    """grain's pipeline, with as many threads or processes as workers."""
    import grain
    from absl import flags

    flags.FLAGS(sys.argv[:1])  # its processes ask for them

    def batches(number: int) -> Batches:
        data = grain.MapDataset.source(Files(task.data)).seed(number).shuffle().repeat()
        data = data.random_map(crop_and_flip).batch(task.batch_size)
        data = data[: task.examples // task.batch_size]
        if processes:
            data = data.to_iter_dataset(grain.ReadOptions(0, 0))
            data = data.mp_prefetch(grain.MultiprocessingOptions(task.workers))
        else:
            data = data.to_iter_dataset(grain.ReadOptions(task.workers, task.workers + 1))
        iterator = iter(data)
        yield from iterator
        iterator.close()

    return batches


def first_batch(folder: str) -> dict[str, float]:
    """Seconds until a set that is not in memory is open, and until the first batch is there."""
    import lbsgd.run.build  # noqa: F401  (imports are not timed)
    from lbsgd.data.packed.reader import PackedSource

    _forget(folder)
    start = time.perf_counter()
    PackedSource(pathlib.Path(folder, "train"))
    opened = time.perf_counter() - start
    _forget(folder)
    start = time.perf_counter()
    run = build_run(folder, "packed", 256, 8)
    built = time.perf_counter() - start
    batch = next(run.feed.train_batches().between(0, 1))
    assert batch["image"].shape == (1, 32, 8, 8, 8, 3), batch["image"].shape
    return {"open": opened, "built": built, "first_batch": time.perf_counter() - start}


def _forget(folder: str) -> None:
    """Has the system drop the files from its memory."""
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def memory(folder: str) -> dict[str, list[float]]:
    """Resident memory (MiB) after every thousand batches of 64, loaded by one thread a core."""
    run = build_run(folder, "packed", 64, 64)
    batches, mib = [], []
    for number, _ in enumerate(run.feed.train_batches().between(0, BATCHES), 1):
        if number % EVERY == 0:
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            batches.append(number)
            mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return {"batches": batches, "mib": mib}


if __name__ == "__main__":
    if sys.argv[1] in ("first_batch", "memory"):
        measure = {"first_batch": first_batch, "memory": memory}[sys.argv[1]]
        print(json.dumps(measure(sys.argv[2])))
    else:
        serve(
            {
                "packed": lambda task: ours(task, "packed"),
                "folder": lambda task: ours(task, "folder"),
                "grain threads": lambda task: grain_batches(task, processes=False),
                "grain processes": lambda task: grain_batches(task, processes=True),
            }
        )
