"""How a pipeline of benchmarks/input_pipeline.py is asked, checked and timed, in its own process.

The parent writes a line on standard input for every round and reads a line of JSON for each. Needs
NumPy alone: FFCV's interpreter runs it too, which has no lbsgd.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

SHAPE = (224, 224)
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)

Batches = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Task:
    """What one child does.

    Attributes:
      pipeline: its name among those of the file.
      data: the file or folder of its form of the data.
      truth: npz of the label and mean RGB of every image.
      batches: timed in a round.
    """

    pipeline: str
    data: str
    truth: str
    workers: int
    batch_size: int
    batches: int

    @property
    def edge(self) -> int:
        """Batches before and after those that are timed.

        The pipeline is as full at the end as at the start, so nothing that was loaded ahead (two
        batches a worker, by PyTorch) comes free, and starting workers is not counted.
        """
        return max(4, 2 * self.workers)

    @property
    def examples(self) -> int:
        """Read in a round, those at the edges too."""
        return (self.batches + 2 * self.edge) * self.batch_size


def positions(task: Task, count: int, seed: int) -> np.ndarray:
    """Indices of a round's examples among `count`: one epoch after the other, each shuffled."""
    random = np.random.default_rng(seed)
    epochs = -(-task.examples // count)
    return np.concatenate([random.permutation(count) for _ in range(epochs)])[: task.examples]


def random_box(
    height: int, width: int, random: Callable[[float, float], float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop, as torchvision's RandomResizedCrop draws it.

    Args:
      random: uniform between two numbers.
    """
    for _ in range(10):
        area = height * width * random(*AREA)
        aspect = np.exp(random(np.log(ASPECT[0]), np.log(ASPECT[1])))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(random(0, height - h + 1)), int(random(0, width - w + 1)), h, w
    w, h = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def check(batches: Batches, task: Task) -> dict[str, float]:
    """Reads a round and raises if it is not what every pipeline has to deliver.

    Returns:
      mean: of all pixels.
      mean_error: root mean square over the examples of how far the mean RGB of their crops is from
        that of the image.
    """
    truth = np.load(task.truth)
    labels, means, seen = [], [], set()
    for images, batch_labels in batches:
        assert images.shape == (task.batch_size, *SHAPE, 3), images.shape
        assert images.dtype == np.uint8, images.dtype
        labels += np.asarray(batch_labels).ravel().tolist()
        means.append(images.mean((1, 2)))
        seen |= {hash(image.tobytes()) for image in images}
    means = np.concatenate(means)
    assert len(labels) == task.examples, f"{len(labels)} examples, not {task.examples}"
    assert len(seen) > 0.99 * task.examples, f"only {len(seen)} of {len(labels)} crops differ"
    _check_labels(labels, truth["label"])
    return _check_pixels(np.asarray(labels), means, truth)


def _check_labels(labels: list[int], truth: np.ndarray) -> None:
    """Every label as often as the epochs read say, to an epoch."""
    there = np.bincount(truth)
    seen = np.bincount(labels, minlength=len(there))
    assert len(seen) == len(there), f"a label {len(seen) - 1}"
    epochs = len(labels) / len(truth)
    off = (seen < np.floor(epochs) * there) | (seen > np.ceil(epochs) * there)
    assert not off.any(), f"labels {np.flatnonzero(off)} come too often or too rarely"


def _check_pixels(labels: np.ndarray, means: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Crops have about the colour of the images with their label, by channel.

    The correlations tell labels that do not belong to their images, and BGR from RGB.
    """
    expected = np.stack(
        [truth["mean"][truth["label"] == k].mean(0) for k in range(max(labels) + 1)]
    )
    expected = expected[labels]
    error = means - expected
    assert abs(error.mean()) < 6, f"pixels are {error.mean():.1f} too bright"
    brightness = np.corrcoef(means.mean(1), expected.mean(1))[0, 1]
    redness = np.corrcoef(means[:, 0] - means[:, 2], expected[:, 0] - expected[:, 2])[0, 1]
    assert min(brightness, redness) > 0.7, f"correlations of {brightness:.2f} and {redness:.2f}"
    return {"mean": float(means.mean()), "mean_error": float(np.sqrt((error**2).mean()))}


def timed(batches: Batches, task: Task) -> float:
    """Images/s of the batches between the edges."""
    start = stop = 0.0
    for number, _ in enumerate(batches, 1):
        if number == task.edge:
            start = time.perf_counter()
        elif number == task.edge + task.batches:
            stop = time.perf_counter()
    return task.batches * task.batch_size / (stop - start)


def serve(pipelines: dict[str, Callable[[Task], Callable[[int], Batches]]]) -> None:
    """Runs the task in argv[1] on the cores in argv[2] (JSON both) until standard input ends.

    Args:
      pipelines: by name, a function that sets one up and returns round -> its batches. What they
        import they import themselves, after the cores are set.
    """
    task = Task(**json.loads(sys.argv[1]))
    os.sched_setaffinity(0, json.loads(sys.argv[2]))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(line: object) -> None:
        print(json.dumps(line), file=replies, flush=True)

    def end(failure: threading.ExceptHookArgs) -> None:
        sys.__excepthook__(failure.exc_type, failure.exc_value, failure.exc_traceback)
        os._exit(1)  # FFCV would wait for its thread for ever

    threading.excepthook = end
    start = pipelines[task.pipeline](task)
    reply(check(start(0), task))
    for number, _ in enumerate(sys.stdin, 1):
        reply(timed(start(number), task))
