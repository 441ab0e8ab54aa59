"""A run that has ended, for all tests of this folder to use; and its images as files."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from tiny_run import tiny_config

from lbsgd import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> pathlib.Path:
    """The workdir of a run of 12 updates, evaluated after 5, 10 and 12; nobody may change it."""
    workdir = tmp_path_factory.mktemp("runs") / "x"
    config = tiny_config(**{"ema.decay": 0.9, "checkpoint.keep": 1, "checkpoint.keep_best": True})
    assert train.run(config, workdir, shown=False).complete
    return workdir


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 `[n, 8, 8, 1]`, and labels of the run's validation set."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return pixels[::5], labels[::5]


@pytest.fixture(scope="session")
def files(tmp_path_factory, digits) -> pathlib.Path:
    """A folder of a few of them for the classes 7, 3 and 0, as PNG."""
    root = tmp_path_factory.mktemp("files")
    for label in (7, 3, 0):
        folder = root / str(label)
        folder.mkdir()
        for i in np.flatnonzero(digits[1] == label)[: 4 + label]:
            Image.fromarray(digits[0][i, :, :, 0]).save(folder / f"{i:03}.png")
    return root
