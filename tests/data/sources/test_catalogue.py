"""What can be known of both splits before training is told before training."""

import pathlib

import numpy as np
import pytest
from image_files import below, encoded, picture, tree, truncated, write
from test_pixels import lab

from lbsgd.data import command
from lbsgd.data.source import Splits
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError

COUNT = 30


def images(height: int = 20, width: int = 30) -> dict[str, bytes]:
    """So many PNGs of one shape in each of two classes."""
    return {
        f"{name}/{i:03}.png": encoded(picture(i, height, width), "PNG")
        for name in ("cat", "dog")
        for i in range(COUNT)
    }


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    return write(tmp_path, below("train", images()) | below("val", images()))


def build(root: pathlib.Path, crop: str = "none", **keys) -> Splits:
    data = default_config().data
    data.update({"source": "folder", "dir": str(root), "crop": crop, **keys})
    return build_sources(data)


@pytest.mark.parametrize("crop", ["none", "padded"])
def test_validation_of_another_shape_is_told(root, crop):
    write(root / "val", images(20, 20))
    message = "training images are 20x30x3, those for validation 20x20x3; data.crop='inception'"
    with pytest.raises(ConfigError, match=message):
        build(root, crop)
    assert len(build(root, "inception").validation) == 2 * COUNT


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["cat/022.png", "dog/000.png"])
def test_an_image_of_another_shape_further_on_is_told(root, split, name):
    (root / split / name).write_bytes(encoded(picture(1, 40, 30), "PNG"))
    with pytest.raises(ConfigError, match=f"^{split}/{name} is 40x30x3, the first training image"):
        build(root)
    build(root, "inception")


DAMAGED = {
    "no image": (b"no image at all", "not an image that can be read"),
    "a type without a rule": (lab(), "no rule brings pixels of the type LAB"),
    "cut short": (truncated()[:40], "the JPEG header is cut short"),
}


@pytest.mark.parametrize("crop", ["none", "inception"])
@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_cannot_be_read_is_told(root, split, kind, crop):
    data, message = DAMAGED[kind]
    (root / split / "dog/000.png").write_bytes(data)
    with pytest.raises(ConfigError, match=f"^{split}/dog/000.png is corrupt: {message}.*'skip'$"):
        build(root, crop)
    assert len(build(root, crop, on_corrupt="skip").train) == 2 * COUNT


def test_images_of_another_kind_are_told(tmp_path):
    for split, channels in (("train", 3), ("validation", 1)):
        pixels = np.zeros((6, 8, 8, channels), np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.arange(6) % 2)
        assert command.main([str(tmp_path / f"{split}.npz"), str(tmp_path / "set"), "--split",
                             split]) == 0  # fmt: skip
    message = "training images have 3 channels, those for validation 1"
    for crop in ("none", "inception"):
        with pytest.raises(ConfigError, match=message):
            build(tmp_path / "set", crop, source="packed")


def test_a_packed_set_says_which_classes_it_has_no_examples_of(tmp_path):
    files = below("train", tree()) | below("val", tree(1, ("dog",)))
    write(tmp_path / "in", files)
    assert command.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    splits = build(tmp_path / "out", "inception", source="packed")
    assert splits.train.notes == ()
    assert splits.validation.notes == ("no examples of 2 of the 3 classes: cat, owl",)
