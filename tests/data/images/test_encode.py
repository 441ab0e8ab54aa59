"""What is made of an image, against Pillow."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded, picture, pillow, truncated, variants
from PIL import Image, ImageOps, JpegImagePlugin

from lbsgd.data.images.decode import CorruptError, read_jpeg_header
from lbsgd.data.images.encode import Encoding
from lbsgd.system.errors import ConfigError

VARIANTS = variants()
LARGE = picture(1, 120, 90)


@pytest.mark.parametrize("name", VARIANTS)
def test_files_are_kept_as_they_are(name):
    image, shape = Encoding()(VARIANTS[name])
    assert image == VARIANTS[name]
    assert shape == pillow(VARIANTS[name]).shape


def test_arrays_are_kept_as_pixels():
    image, shape = Encoding()(LARGE)
    assert image is LARGE
    assert shape == LARGE.shape


@pytest.mark.parametrize(
    "encoding", [Encoding(), Encoding(raw=True), Encoding(quality=80), Encoding(max_side=10)]
)
@pytest.mark.parametrize("data", [truncated(), b"no image", b""], ids=["cut", "text", "empty"])
def test_what_cannot_be_decoded_is_corrupt(encoding, data):
    with pytest.raises(CorruptError):
        encoding(data)


@pytest.mark.parametrize("name", VARIANTS)
def test_raw_pixels_are_those_of_pillow(name):
    image, shape = Encoding(raw=True)(VARIANTS[name])
    np.testing.assert_array_equal(image, pillow(VARIANTS[name]))
    assert shape == image.shape


@pytest.mark.parametrize(("height", "width"), [(120, 90), (90, 120), (90, 90), (61, 200)])
@pytest.mark.parametrize("sides", [{"max_side": 60}, {"short_side": 60}])
def test_shrunk_pixels_are_those_of_pillow(height, width, sides):
    """Whose `contain` is bound by the longer side, and whose `cover` by the shorter."""
    original = Image.fromarray(picture(1, height, width))
    fit = ImageOps.contain if "max_side" in sides else ImageOps.cover
    expected = np.asarray(fit(original, (60, 60), Image.Resampling.LANCZOS))
    for data in (encoded(np.asarray(original), "PNG"), np.asarray(original)):
        image, shape = Encoding(**sides, raw=True)(data)
        np.testing.assert_array_equal(image, expected)
        assert shape == expected.shape


def test_large_shrinking_has_no_aliases():
    """A fine chequerboard becomes its mean (three roundings off); picking gives 0 or 255."""
    board = np.tile(
        np.array([[0, 255], [255, 0]], np.uint8).repeat(3).reshape(2, 2, 3), (300, 300, 1)
    )
    image, _ = Encoding(max_side=40, raw=True)(board)
    assert image.shape == (40, 40, 3)
    assert np.abs(image.astype(int) - 127.5).max() <= 1.5


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3000))
def test_sizes(height, width, side):
    """One side is as said, the other within half a pixel of the aspect; nothing is enlarged."""
    for encoding, pick in ((Encoding(max_side=side), max), (Encoding(short_side=side), min)):
        h, w = encoding.size(height, width)
        if pick(height, width) <= side:
            assert (h, w) == (height, width)
        else:
            assert side in (h, w)
            scale = side / pick(height, width)
            assert abs(h - scale * height) <= 0.5 or h == 1
            assert abs(w - scale * width) <= 0.5 or w == 1


def test_small_image_is_not_enlarged():
    image, shape = Encoding(max_side=500, raw=True)(encoded(LARGE, "PNG"))
    np.testing.assert_array_equal(image, LARGE)
    assert shape == LARGE.shape


@pytest.mark.parametrize(("quality", "asked"), [(90, 0), (90, 90), (35, 35)])
def test_jpeg_is_that_of_pillow(quality, asked):
    """Of the same quality, with colour at half the size; 90 is the default."""
    data, shape = Encoding(max_side=60, quality=asked)(encoded(LARGE, "PNG"))
    small = Image.fromarray(LARGE).resize((45, 60), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=quality)
    with Image.open(io.BytesIO(data)) as ours, Image.open(file) as theirs:
        assert ours.format == "JPEG"
        assert ours.quantization == theirs.quantization
        assert JpegImagePlugin.get_sampling(ours) == 2  # 4:2:0
    np.testing.assert_array_equal(pillow(data), pillow(file.getvalue()))
    assert shape == (60, 45, 3)


@pytest.mark.parametrize("image", [LARGE, LARGE[..., :1]], ids=["colour", "grey"])
def test_jpeg_has_a_restart_marker_after_each_row_of_blocks(image):
    data, shape = Encoding(quality=90)(image)
    header = read_jpeg_header(data)
    assert header.restart == -(-header.width // header.block[1]) > 0
    assert shape == (*LARGE.shape[:2], 3)


def test_quality_alone_encodes_anew_at_the_same_size():
    data, shape = Encoding(quality=50)(encoded(LARGE, quality=95))
    assert shape == LARGE.shape == pillow(data).shape
    assert len(data) < len(encoded(LARGE, quality=95)) / 2


def test_channels_that_jpeg_has_not_are_an_error():
    image = np.zeros((20, 20, 2), np.uint8)
    assert Encoding()(image)[1] == (20, 20, 2)
    for encoding in (Encoding(quality=90), Encoding(max_side=10)):
        with pytest.raises(ConfigError, match="images of 2 channels can neither be resized nor"):
            encoding(image)


def test_image_too_long_for_jpeg_is_corrupt():
    with pytest.raises(CorruptError, match="70000 x 2 pixels are too many for a JPEG"):
        Encoding(quality=90)(np.zeros((2, 70_000, 3), np.uint8))
