"""FFCV for benchmarks/input_pipeline.py: run by an interpreter that has it, not by hand.

    python input_pipeline_ffcv.py write FOLDER FORM OUTPUT    packs a folder of class folders

The forms are FFCV's own: "jpeg90", "jpeg400" and "jpeg256" are encoded by its writer at quality 90,
"raw400" are pixels. "kept" is what FFCV has no option for: the bytes of the files as they are.
"""

import pathlib
import sys
from collections.abc import Callable

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
from ffcv.writer import DatasetWriter
from input_pipeline_child import AREA, ASPECT, SHAPE, Batches, Task, serve
from PIL import Image

FORMS = {
    "jpeg90": {"write_mode": "jpg"},
    "jpeg400": {"write_mode": "jpg", "max_resolution": 400},
    "raw400": {"write_mode": "raw", "max_resolution": 400},
    "jpeg256": {"write_mode": "jpg", "max_resolution": 256},
}


class KeptField(RGBImageField):
    """Stores the bytes of a JPEG file, given its path."""

    def encode(self, destination, image, malloc):
        data = np.fromfile(image, np.uint8)
        with Image.open(image) as file:
            destination["width"], destination["height"] = file.size
        destination["mode"] = 0  # JPEG
        destination["data_ptr"], storage = malloc(data.nbytes)
        storage[:] = data


class Folder:
    """Path or pixels, and label, of the files in a folder of class folders."""

    def __init__(self, folder: str, paths: bool) -> None:
        self.paths = paths
        classes = sorted(pathlib.Path(folder).iterdir())
        self.files = [(f, label) for label, c in enumerate(classes) for f in sorted(c.iterdir())]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[object, int]:
        path, label = self.files[index]
        if self.paths:
            return str(path), label
        with Image.open(path) as file:
            return file.convert("RGB"), label


def write(folder: str, form: str, output: str) -> None:
    """Writes a form of the images in a folder of class folders."""
    field = KeptField() if form == "kept" else RGBImageField(jpeg_quality=90, **FORMS[form])
    writer = DatasetWriter(output, {"image": field, "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(Folder(folder, form == "kept"))


def ffcv(task: Task) -> Callable[[int], Batches]:
    """FFCV's loader, in random order."""
    fields = {"image": RGBImageField}
    count = Reader(task.data, fields).num_samples
    loader = Loader(
        task.data,
        task.batch_size,
        num_workers=task.workers,
        order=OrderOption.RANDOM,
        seed=0,
        # A round is one of its epochs: it pays for no more starts than the others.
        indices=np.resize(np.arange(count, dtype=np.uint64), task.examples),
        custom_fields=fields,
        pipelines={
            "image": [
                RandomResizedCropRGBImageDecoder(SHAPE, AREA, ASPECT),
                RandomHorizontalFlip(),
                ToTensor(),
            ],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    return lambda number: ((images.numpy(), labels.numpy()) for images, labels in loader)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(*sys.argv[2:])
    else:
        serve({"ffcv": ffcv})
