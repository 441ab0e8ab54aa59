"""Images/s of evaluation and of training crops, antialiased or by the fast rule, and their pixels.

    python benchmarks/resampling.py run TAR    measures and writes docs/results/resampling.json
    python benchmarks/resampling.py table      prints the table from it

TAR holds JPEGs, which are read into memory. Each view decodes and resizes all of them, on one core
with one thread and on two with two; the views take turns after every few images, so that what else
the machine does is shared by all, and a ratio is of one round.
Pixels are compared with Pillow's own of the same view: the image, or the crop of it, decoded and
resized whole, as torchvision's transforms have it.
"""

import io
import json
import os
import pathlib
import statistics
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from command import run_or_table
from input_pipeline import describe, spread
from PIL import Image
from provenance import provenance

from lbsgd.data.images.resize import Box
from lbsgd.data.views import CentreCrop, InceptionCrop, extract_region

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "resampling.json"
ROUNDS = 7
# Images of a view before it is another's turn.
TURN = 32
CROP, SHORT_SIDE = 224, 256
SHAPE = (CROP, CROP, 3)
FAST, ANTIALIASED, PILLOW = "the fast rule", "antialiased", "Pillow, whole images"
NAMES = {"evaluation": f"centre {CROP} of a short side of {SHORT_SIDE}", "training": "random crop"}

View = Callable[[int, bytes, np.ndarray], None]


def fast_box(height: int, width: int) -> Box:
    """The centre in whole pixels, which the fast rule resizes."""
    side = round(CROP * min(height, width) / SHORT_SIDE)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def pillow_centre(image: Image.Image) -> Image.Image:
    """torchvision's Resize and CenterCrop."""
    sides = [int(SHORT_SIDE * side / min(image.size)) for side in image.size]
    left, top = (round((side - CROP) / 2) for side in sides)
    resized = image.resize(tuple(sides), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + CROP, top + CROP))


def evaluation_views() -> dict[str, View]:
    """Of the centre of each image, by how it is resampled."""
    centre = CentreCrop(SHAPE, SHORT_SIDE)
    return {
        FAST: lambda index, data, out: extract_region(data, fast_box, out),
        ANTIALIASED: lambda index, data, out: centre(data, np.empty(0), out),
        PILLOW: lambda index, data, out: np.copyto(out, pillow_centre(open_rgb(data))),
    }


def training_views(count: int) -> dict[str, View]:
    """Makes the view of a random box of each image, the same for all."""
    fast, antialiased = InceptionCrop(SHAPE, 0), InceptionCrop(SHAPE, 0, antialias=True)
    draws = fast.draw(np.zeros(count, int), np.arange(count))

    def by_pillow(index: int, data: bytes, out: np.ndarray) -> None:
        image = open_rgb(data)
        top, left, height, width = fast.box(image.height, image.width, draws[index])
        cut = image.crop((left, top, left + width, top + height))
        out[:] = cut.resize((CROP, CROP), Image.Resampling.BILINEAR)

    return {
        FAST: lambda index, data, out: fast(data, draws[index], out),
        ANTIALIASED: lambda index, data, out: antialiased(data, draws[index], out),
        PILLOW: by_pillow,
    }


def open_rgb(data: bytes) -> Image.Image:
    """An image as Pillow decodes it."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def seconds(view: View, files: list[bytes], part: range, pool: ThreadPoolExecutor) -> np.ndarray:
    """Of the clock, and of the processor, for a part of the files."""

    def load(index: int) -> None:
        view(index, files[index], np.empty(SHAPE, np.uint8))

    clock, processor = time.perf_counter(), time.process_time()
    list(pool.map(load, part))
    return np.array([time.perf_counter() - clock, time.process_time() - processor])


def take_turns(views: dict[str, View], files: list[bytes], threads: int) -> dict[str, object]:
    """Images/s and processor ms an image of each view, in every round after one to warm up."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])  # the threads inherit them
    taken = np.zeros((ROUNDS + 1, len(views), 2))
    with ThreadPoolExecutor(threads) as pool:
        for number in range(ROUNDS + 1):
            for first in range(0, len(files), TURN):
                part = range(first, min(first + TURN, len(files)))
                for i, view in enumerate(views.values()):
                    taken[number, i] += seconds(view, files, part, pool)
    os.sched_setaffinity(0, cores)
    rates, cpu = len(files) / taken[1:, :, 0], 1e3 * taken[1:, :, 1] / len(files)
    return {
        name: {"images_per_s": rates[:, i].tolist(), "cpu_ms": cpu[:, i].tolist()}
        for i, name in enumerate(views)
    }


def differences(views: dict[str, View], files: list[bytes]) -> dict[str, dict[str, float]]:
    """To Pillow's pixels, of 255: the mean, that of the worst file, and the largest of a pixel."""
    apart = {name: [] for name in views if name != PILLOW}
    for index, data in enumerate(files):
        theirs, ours = np.empty(SHAPE, np.uint8), np.empty(SHAPE, np.uint8)
        views[PILLOW](index, data, theirs)
        for name, found in apart.items():
            views[name](index, data, ours)
            difference = np.abs(ours.astype(int) - theirs)
            found.append((float(difference.mean()), int(difference.max())))
    return {
        name: {
            "mean": statistics.mean(mean for mean, _ in found),
            "worst_file": max(mean for mean, _ in found),
            "largest": max(largest for _, largest in found),
        }
        for name, found in apart.items()
    }


def run(tar: str) -> None:
    """Measures both kinds of views."""
    with tarfile.open(tar) as archive:
        files = [archive.extractfile(member).read() for member in archive if member.isfile()]
    kinds = {"evaluation": evaluation_views(), "training": training_views(len(files))}
    threads = range(1, min(2, len(os.sched_getaffinity(0))) + 1)
    results = {
        "machine": describe(),
        "images": len(files),
        "rates": {
            kind: {str(n): take_turns(views, files, n) for n in threads}
            for kind, views in kinds.items()
        },
        "differences": {kind: differences(views, files) for kind, views in kinds.items()},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def table() -> str:
    """Images/s, as a part of the fast rule's in the same round, and how far pixels are off."""
    results = json.loads(RESULTS.read_text())
    head, rule = "| view | resampled |", "|---|---|"
    for n in results["rates"]["evaluation"]:
        head += f" images/s, {n} core{'s' * (n != '1')} | of the fast rule's |"
        rule += "---|---|"
    head += " CPU ms an image | off Pillow's pixels by | worst file | worst pixel |"
    lines = [head, rule + "---|---|---|---|"]
    for kind in NAMES:
        for name in results["rates"][kind]["1"]:
            lines.append("| " + " | ".join(_cells(results, kind, name)) + " |")
    return "\n".join([*lines, "", _conditions(results)])


def _cells(results: dict[str, object], kind: str, name: str) -> list[str]:
    cells, rates = [f"{kind}: {NAMES[kind]}", name], results["rates"][kind]
    for there in rates.values():
        ours, fast = (there[view]["images_per_s"] for view in (name, FAST))
        ratios = [a / b for a, b in zip(ours, fast)]
        cells += [spread(ours), spread(ratios, 2) if name != FAST else ""]
    cells.append(f"{statistics.median(rates['1'][name]['cpu_ms']):.2f}")
    off = results["differences"][kind].get(name)
    if not off:
        return [*cells, "", "", ""]
    return [*cells, f"{off['mean']:.3f}", f"{off['worst_file']:.2f}", str(off["largest"])]


def _conditions(results: dict[str, object]) -> str:
    packages = ("lbsgd", "numpy", "opencv-python-headless", "simplejpeg", "pillow")
    return (
        f"{results['images']} images; median (range) of {ROUNDS} rounds; pixels of 255. "
        f"{provenance(results, packages=packages)}"
    )


if __name__ == "__main__":
    run_or_table(__doc__, run, table, arguments=1)
