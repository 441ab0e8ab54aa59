"""Small datasets for tensorflow-datasets to write, and what the tests of them share.

    python tests/data/tfds_datasets.py FOLDER

writes them: `data` (ArrayRecord) and `tfrecord`, each a data_dir.
"""

import io
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import tensorflow_datasets
from PIL import Image
from tensorflow_datasets import features

from lbsgd.run.config import default_config

ROOT = pathlib.Path(__file__).parents[2]
TRAIN, TEST = 30, 10
CLASSES = ("cat", "dog", "owl")


def image_file(i: int) -> bytes:
    """JPEG, PNG and grey PNG by turns, of noise; no two of one size."""
    mode, kind = (("RGB", "JPEG"), ("RGB", "PNG"), ("L", "PNG"))[i % 3]
    shape = (20 + i, 30, 3) if mode == "RGB" else (20 + i, 30)
    pixels = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


IMAGES = {image_file(i): i for i in range(TRAIN + TEST)}


class Base(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    """SPLITS are of examples from here up to there."""

    VERSION = tensorflow_datasets.core.Version("1.2.3")
    KEYS = ("image", "label")

    def _info(self):
        described = features.FeaturesDict(self.features())
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=described, supervised_keys=self.KEYS
        )

    def _split_generators(self, manager):
        return {name: self._generate_examples(*ends) for name, ends in self.SPLITS.items()}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            yield i, self.example(i)


class Pets(Base):
    """Files as they are, of any size; the one that tensorflow-datasets knows by name."""

    SPLITS = {"train": (0, TRAIN), "test": (TRAIN, TRAIN + TEST)}  # noqa: RUF012

    def features(self):
        label = features.ClassLabel(names=list(CLASSES))
        return {"image": features.Image(), "label": label, "id": features.Text()}

    def example(self, i):
        return {"image": image_file(i), "label": i % 3, "id": str(i)}


class Alone(Pets, skip_registration=True):
    """Without a split for validation."""

    SPLITS = {"train": (0, 5)}  # noqa: RUF012


class Digits8(Base, skip_registration=True):
    """Grey arrays of one size in two configs; the labels for the test are hidden."""

    BUILDER_CONFIGS = [  # noqa: RUF012
        tensorflow_datasets.core.BuilderConfig(name=name, version="2.0.0")
        for name in ("full", "half")
    ]
    SPLITS = {"train": (0, 20), "validation": (20, 25), "test": (25, 30)}  # noqa: RUF012
    KEYS = None

    def features(self):
        image = features.Image(shape=(8, 6, 1))
        return {"image": image, "label": features.ClassLabel(num_classes=4)}

    def example(self, i):
        return {"image": np.full((8, 6, 1), i, np.uint8), "label": i % 4 if i < 25 else -1}


class Words(Base, skip_registration=True):
    """No images."""

    SPLITS = {"train": (0, 3)}  # noqa: RUF012
    KEYS = ("text", "label")

    def features(self):
        return {"text": features.Text(), "label": features.ClassLabel(num_classes=3)}

    def example(self, i):
        return {"text": "word", "label": i}


class Depths(Base, skip_registration=True):
    """Images of 16 bits."""

    SPLITS = {"train": (0, 3)}  # noqa: RUF012

    def features(self):
        image = features.Image(shape=(4, 4, 1), dtype=np.uint16, encoding_format="png")
        return {"image": image, "label": features.ClassLabel(num_classes=3)}

    def example(self, i):
        return {"image": np.full((4, 4, 1), 999, np.uint16), "label": i}


def write(folder: pathlib.Path) -> None:
    """Writes all of them, in 3 files a split where that can be."""
    made = {"data_dir": folder / "data", "file_format": "array_record"}
    builders = [kind(**made) for kind in (Pets, Alone, Words, Depths)]
    builders += [Digits8(config=name, **made) for name in ("full", "half")]
    builders += [Pets(data_dir=folder / "tfrecord", file_format="tfrecord")]
    for builder in builders:
        shards = tensorflow_datasets.download.DownloadConfig(num_shards=3)
        builder.download_and_prepare(download_config=shards)


def run(*arguments: str, check: bool = True):
    """Python in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def data_config(directory, name: str = "pets", **splits):
    config = default_config().data
    config.update({"source": "tfds", "dir": str(directory), "tfds_name": name})
    config.crop = "inception"  # they differ in size
    config.update({f"tfds_{split}": value for split, value in splits.items()})
    return config


def examples(source) -> list[tuple[bytes, int]]:
    return [tuple(source[i]) for i in range(len(source))]


def shards(folder: pathlib.Path, split: str = "train") -> list[pathlib.Path]:
    return sorted(folder.glob(f"[!i]*-{split}.array_record-*"))


def command_in(error: Exception) -> list[str]:
    """The command at the end of a message, as a shell takes it."""
    program, *words = shlex.split(re.search(": ((?:lbsgd|python) .*)", str(error))[1])
    return [sys.executable, *(["-m", "lbsgd.main"] if program == "lbsgd" else []), *words]


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
