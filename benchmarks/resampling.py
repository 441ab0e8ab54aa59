"""Images/s of evaluation and of training crops, antialiased or by the fast rule, and their pixels.

    python benchmarks/resampling.py run TAR    measures and writes docs/results/resampling.json
    python benchmarks/resampling.py table      prints the table from it

TAR holds JPEGs, which are read into memory. Each view decodes and resizes all of them, on one core
with one thread and on two with two; the views take turns, and a ratio is of neighbours in time.
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

from lbsgd.data.augment import CentreCrop, InceptionCrop, look
from lbsgd.data.resize import Box

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results" / "resampling.json"
ROUNDS = 7
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
        FAST: lambda index, data, out: look(data, fast_box, out),
        ANTIALIASED: lambda index, data, out: centre(data, np.empty(0), out),
        PILLOW: lambda index, data, out: np.copyto(out, pillow_centre(open_rgb(data))),
    }


def training_views(count: int) -> dict[str, View]:
    """Of a random box of each image, the same for all."""
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


def rate(view: View, files: list[bytes], threads: int) -> float:
    """Images/s of all files."""

    def load(first: int) -> None:
        out = np.empty(SHAPE, np.uint8)
        for index in range(first, min(first + 8, len(files))):
            view(index, files[index], out)

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(load, range(0, len(files), 8)))
        return len(files) / (time.perf_counter() - start)


def take_turns(views: dict[str, View], files: list[bytes], threads: int) -> dict[str, list[float]]:
    """Images/s of each view in every round, after one to warm up, on as many cores as threads."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])
    rates = {name: [] for name in views}
    for _ in range(ROUNDS + 1):
        for name, view in views.items():
            rates[name].append(rate(view, files, threads))
    os.sched_setaffinity(0, cores)
    return {name: those[1:] for name, those in rates.items()}


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
    threads = list(results["rates"]["evaluation"])
    head, rule = "| view | resampled |", "|---|---|"
    for n in threads:
        head += f" images/s, {n} core{'s' * (n != '1')} | of the fast rule's |"
        rule += "---|---|"
    lines = [head + " off Pillow's pixels by | worst file | worst pixel |", rule + "---|---|---|"]
    for kind, rates in results["rates"].items():
        for name in rates["1"]:
            cells = [f"{kind}: {NAMES[kind]}", name]
            for there in rates.values():
                ratios = [a / b for a, b in zip(there[name], there[FAST])]
                cells += [spread(there[name]), spread(ratios, 2) if name != FAST else ""]
            off = results["differences"][kind].get(name)
            cells += [f"{off['mean']:.3f}", f"{off['worst_file']:.2f}"] if off else ["", ""]
            cells.append(str(off["largest"]) if off else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _conditions(results)])


def _conditions(results: dict[str, object]) -> str:
    machine = results["machine"]
    packages = ("lbsgd", "numpy", "opencv-python-headless", "simplejpeg", "pillow")
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in packages)
    return (
        f"{results['images']} images; median (range) of {ROUNDS} rounds; pixels of 255. "
        f"{machine.get('processor', 'CPU')}, {versions}, commit {machine['git_commit'][:10]}."
    )


if __name__ == "__main__":
    run_or_table(__doc__, run, table, arguments=1)
