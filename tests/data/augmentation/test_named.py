"""The door of augmentation: lbsgd's own and anyone's by name, and what goes wrong in a line."""

import itertools
import re

import numpy as np
import pytest

from lbsgd.data.augmentation.catalogue import OWN
from lbsgd.data.augmentation.named import build_augmentation
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError

SHAPE = (6, 5, 3)
CODE = """\
import numpy as np

def invert(seed, image_shape, least=0):
    def augment(images, epochs, examples):
        return np.where(images >= least, 255 - images, images)
    return augment

class Darker:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, images, epochs, examples):
        images //= self.factor
        return images

    def image_size(self, epoch):
        return (3, 2) if epoch < 2 else [6, np.int64(5)]

def of(value):
    return lambda images, epochs, examples: value

def cast(to):
    return lambda images, epochs, examples: images.astype(to)

def cut():
    return lambda images, epochs, examples: images[:, 1:]

def fails():
    def augment(images, epochs, examples):
        return images.missing
    return augment

def never(seed):
    raise RuntimeError("not today")

def sized(height=3, width=3):
    def augment(images, epochs, examples):
        return images
    augment.image_size = lambda epoch: (height, width)
    return augment

def shaped():
    def augment(images, epochs, examples):
        return images
    augment.image_size = (3, 3)  # something of its own
    return augment

def unsized():
    def augment(images, epochs, examples):
        return images
    augment.image_size = lambda epoch: 1 / 0
    return augment

number = 3
nothing = lambda: None
"""
counter = itertools.count()


def line_of(text: str) -> int:
    """The first line of the code with this text."""
    return CODE[: CODE.index(text)].count("\n") + 1


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds what a name of the module above stands for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = f"augment_of_mine_{next(counter)}"
    (tmp_path / f"{module}.py").write_text(CODE)

    def built(name: str, **options: object):
        config = default_config()
        config.data.augment = f"{module}:{name}" if name not in OWN else name
        config.data.augment_options = options
        return build_augmentation(config.data, 7, SHAPE)

    return built


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype(np.uint8)


def augmented(augmentation) -> np.ndarray:
    batch = images()
    augmentation(batch, np.zeros(4, int), np.arange(4))
    return batch


def test_without_a_name_there_is_none():
    assert build_augmentation(default_config().data, 0, SHAPE) is None


def test_what_it_returns_takes_the_place_of_the_images(build):
    np.testing.assert_array_equal(augmented(build("invert")), 255 - images())
    some = np.where(images() >= 100, 255 - images(), images())
    np.testing.assert_array_equal(augmented(build("invert", least=100)), some)


def test_it_may_change_them_in_place(build):
    np.testing.assert_array_equal(augmented(build("Darker", factor=3)), images() // 3)


def test_it_may_say_a_size(build):
    darker = build("Darker", factor=3)
    assert darker.resizes
    assert [darker.image_size(epoch) for epoch in (0, 2)] == [(3, 2), (6, 5)]
    assert not build("invert").resizes
    assert build("shaped").image_size(0) == (6, 5)


@pytest.mark.parametrize(
    ("name", "options", "at", "says"),
    [
        ("of", {"value": None}, "def of", "returned None, not the images"),
        ("of", {"value": [1]}, "def of", r"returned \[1\], not the images"),
        ("cast", {"to": "float32"}, "def cast", "returned float32 2x6x5x3, not images of uint8 2x"),
        ("cut", {}, "def cut", "returned uint8 2x5x5x3, not images of uint8 2x6x5x3"),
        (
            "fails",
            {},
            "images.missing",
            "AttributeError: 'numpy.ndarray' object has no attribute 'missing'",
        ),
    ],
)
def test_what_it_does_wrong_is_said_with_its_line(build, name, options, at, says):
    """Before anything is compiled: it is tried when it is built."""
    with pytest.raises(ConfigError, match=says) as error:
        build(name, **options)
    assert re.search(rf"augment_of_mine_\d+\.py, line {line_of(at)}\b", str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "invert",
            {"leest": 3},
            rf"line {line_of('def invert')}\) has no option 'leest'; .* is 'least'",
        ),
        (
            "Darker",
            {},
            rf"line {line_of('class Darker')}\) needs 'factor'; set data.augment_options.factor",
        ),
        ("never", {}, f"line {line_of('raise')}: RuntimeError: not today"),
        ("nothing", {}, r"gave None, not a function of images"),
        ("number", {}, "which cannot be called"),
        ("there", {}, "there is no 'there' in"),
    ],
)
def test_what_cannot_be_built_is_said_with_its_line(build, name, options, says):
    with pytest.raises(ConfigError, match=says):
        build(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sized", {"height": 7}, r"image_size\(0\) of \(7, 3\), which must be .* at most 6x5"),
        ("sized", {"width": 0}, r"image_size\(0\) of \(3, 0\)"),
        ("sized", {"width": 2.5}, r"image_size\(0\) of \(3, 2.5\)"),
        ("sized", {"width": True}, r"image_size\(0\) of \(3, True\)"),
        ("unsized", {}, f"line {line_of('1 / 0')}: ZeroDivisionError"),
    ],
)
def test_a_size_that_cannot_be_is_an_error(build, name, options, says):
    augmentation = build(name, **options)
    with pytest.raises(ConfigError, match=says):
        augmentation.image_size(0)


@pytest.mark.parametrize("name", OWN)
def test_own_ones_come_through_the_same_door(build, name):
    options = {"end_epoch": 3} if name == "progressive_resizing" else {}
    augmentation = build(name, **options)
    assert str(augmentation.named) == f"data.augment={name!r}"
    assert augmentation.resizes == bool(options)
    batch = augmented(augmentation)
    assert (batch != images()).any() != bool(options)
    with pytest.raises(ConfigError, match="has no option 'sise'"):
        build(name, sise=3, **options)


def test_a_missing_option_of_an_own_one_is_an_error(build):
    with pytest.raises(ConfigError, match="needs 'end_epoch'; set data"):
        build("progressive_resizing")
