"""The data that benchmarks/gpu.py trains on and loads."""

import dataclasses
import io
import pathlib

import gpu_job
import gpu_train
import numpy as np
import pytest
from PIL import Image

from lbsgd.system.errors import ConfigError


def job_on(tmp_path: pathlib.Path) -> gpu_job.Job:
    scratch, data = tmp_path / "scratch", tmp_path / "data"
    data.mkdir()
    return gpu_job.Job("train", str(tmp_path), str(scratch), str(data), False, 0.0, 1e12)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["imagenet/a/1.JPEG", "imagenet.tar"], "imagenet"),
        (["imagenet.tar", "imagenet_samples/x.tar"], "imagenet.tar"),
        (["imagenet_samples.tar"], "imagenet_samples.tar"),
        (["imagenet_samples/x.tar", "imagenet_samples/wnids.txt"], "imagenet_samples/x.tar"),
        (["imagenet_samples/x.tar", "imagenet_samples/y.tar"], None),  # which?
        (["imagenette/x.tar", "imagenet.zip"], None),
    ],
)
def test_data_are_found(files, expected, tmp_path):
    job = job_on(tmp_path)
    for file in files:
        path = pathlib.Path(job.data, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert job.find("imagenet", ".tar") == (expected and pathlib.Path(job.data, expected))
    assert dataclasses.replace(job, data="").find("imagenet", ".tar") is None


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_encoded_arrays_are_decoded(tmp_path):
    job = job_on(tmp_path)
    folder, expected = pathlib.Path(job.data, "cifar10"), {}
    folder.mkdir()
    for split, count in (("train", 5), ("test", 3)):
        files = [io.BytesIO() for _ in range(count)]
        for file, image in zip(files, random_images(count), strict=True):
            Image.fromarray(image).save(file, "JPEG")
        expected[split] = np.stack([np.asarray(Image.open(file)) for file in files])
        sizes = np.cumsum([0, *(len(file.getvalue()) for file in files)])
        data = np.frombuffer(b"".join(file.getvalue() for file in files), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 2
        np.savez(folder / f"{split}.npz", jpeg=data, offsets=sizes, labels=labels)
    found = gpu_train.arrays(job)
    for split, theirs in (("train", "train"), ("validation", "test")):
        arrays = np.load(found / f"{split}.npz")
        np.testing.assert_array_equal(arrays["images"], expected[theirs])
        assert arrays["labels"].tolist() == [i % 2 for i in range(len(expected[theirs]))]


@pytest.mark.parametrize("splits", [["train"], ["train", "validation"]])
def test_arrays_of_both_splits_are_ready(splits, tmp_path):
    job = job_on(tmp_path)
    folder = pathlib.Path(job.data, "cifar10")
    folder.mkdir()
    for split in splits:
        np.savez(folder / f"{split}.npz", images=random_images(4), labels=np.arange(4) % 2)
    if len(splits) == 2:
        assert gpu_train.arrays(job) == folder
    else:
        with pytest.raises(ConfigError, match="no validation split"):
            gpu_train.arrays(job)
