"""Datasets that tensorflow-datasets has written, for the tests that read or convert them."""

import importlib.util
import pathlib
import shutil

import pytest


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> pathlib.Path:
    """`data` (ArrayRecord) and `tfrecord`, data_dirs; TensorFlow stays in a process of its own."""
    if not importlib.util.find_spec("tensorflow"):
        pytest.skip("tensorflow, which writes the datasets, is not installed")
    import tfds_datasets  # slow to import

    folder = tmp_path_factory.mktemp("tfds")
    tfds_datasets.run(tfds_datasets.__file__, str(folder))
    return folder


@pytest.fixture
def pets(written, tmp_path) -> pathlib.Path:
    """The folder of a version, to damage."""
    return pathlib.Path(shutil.copytree(written / "data/pets/1.2.3", tmp_path / "pets"))


@pytest.fixture
def tfrecord(written, tmp_path) -> pathlib.Path:
    """A version folder with TFRecord files only; a shell must quote its path."""
    return pathlib.Path(shutil.copytree(written / "tfrecord/pets/1.2.3", tmp_path / "my pets"))
