"""Resizing against weights worked out pixel by pixel, for each of the two rules."""

import numpy as np
import pytest

from lbsgd.data.images.resize import Box, Window, resample, resize, shrink, window_around


def area_weights(size: int, pixels: int) -> np.ndarray:
    """Row i: how much of each of `size` pixels the i-th of `pixels` covers."""
    edges = np.arange(pixels + 1) * size / pixels
    j = np.arange(size)
    covered = np.minimum(edges[1:, None], j + 1) - np.maximum(edges[:-1, None], j)
    return np.clip(covered, 0, None) * pixels / size


def bilinear_weights(size: int, pixels: int) -> np.ndarray:
    """Row i: of the two pixels whose middles are nearest to that of the i-th of `pixels`."""
    weights = np.zeros((pixels, size))
    for i in range(pixels):
        middle = (i + 0.5) * size / pixels - 0.5
        below = int(np.floor(middle))
        weights[i, max(below, 0)] += below + 1 - middle
        weights[i, min(below + 1, size - 1)] += middle - below
    return weights


def resized(image: np.ndarray, shape: tuple[int, int], weights) -> np.ndarray:
    down, across = (weights(size, pixels) for size, pixels in zip(image.shape, shape))
    return np.einsum("ai,ijc,bj->abc", down, image.astype(float), across)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("before", "after", "weights"),
    [
        ((10, 12), (20, 20), bilinear_weights),
        ((33, 35), (20, 20), bilinear_weights),
        ((39, 20), (20, 20), bilinear_weights),
        ((1, 1), (4, 3), bilinear_weights),
        ((20, 7), (20, 13), bilinear_weights),
        ((40, 40), (20, 20), area_weights),
        ((41, 47), (20, 20), area_weights),
        ((100, 30), (25, 28), area_weights),
        ((57, 133), (19, 11), area_weights),
        ((64, 48), (1, 1), area_weights),
    ],
)
def test_resize_weighs_pixels_as_it_should(before, after, weights, channels):
    random = np.random.default_rng(before[0])
    image = random.integers(0, 256, (*before, channels), dtype=np.uint8)
    actual = resize(image, after)
    assert actual.shape == (*after, channels)
    assert actual.dtype == np.uint8
    assert np.abs(actual - resized(image, after, weights)).max() <= 1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("wide", [1, 19, 20, 35])
def test_resize_leaves_no_pixel_out_where_one_side_shrinks(wide, flip):
    """The other side, along which the image is constant, becomes 20."""
    column = np.random.default_rng(0).integers(0, 256, (100, 1, 3), dtype=np.uint8)
    image = np.repeat(column, wide, axis=1)
    expected = np.repeat(column.reshape(20, 5, 1, 3).mean(axis=1), 20, axis=1)
    if flip:
        image, expected = image.swapaxes(0, 1).copy(), expected.swapaxes(0, 1)
    assert np.abs(resize(image, (20, 20)) - expected).max() <= 1


def triangle_weights(
    size: int, pixels: int, begin: float = 0.0, length: float | None = None
) -> np.ndarray:
    """Row i: a triangle around the middle of the i-th of `pixels` parts of begin..begin+length.

    Half as wide at its foot as the part is long, or as a pixel where that is longer.
    """
    step = (size if length is None else length) / pixels
    middles = begin + (np.arange(pixels) + 0.5) * step
    distance = np.abs(np.arange(size) + 0.5 - middles[:, None]) / max(step, 1.0)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


# Rounded twice, after each direction, and weights to 2^-22: at most 1/2 + 1/2 and a little.
TWICE_ROUNDED = 1.01


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((10, 12), (20, 20)),
        ((33, 35), (20, 20)),
        ((20, 7), (20, 13)),
        ((1, 1), (4, 3)),
        ((100, 30), (25, 28)),
        ((64, 48), (1, 1)),
        ((17, 17), (17, 17)),
    ],
)
def test_resample_weighs_pixels_by_triangles(before, after, channels):
    random = np.random.default_rng(before[0])
    image = random.integers(0, 256, (*before, channels), dtype=np.uint8)
    box = Box(0, 0, *before)
    actual = resample(image, Window(box, *box), after)
    assert actual.shape == (*after, channels)
    assert actual.dtype == np.uint8
    assert np.abs(actual - resized(image, after, triangle_weights)).max() <= TWICE_ROUNDED


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        ((10.3, 20.7, 25.5, 31.2), (20, 20)),
        ((0.0, 3.9, 60.0, 5.2), (7, 30)),
        ((30.25, 0.0, 29.75, 80.0), (5, 64)),
        ((59.5, 79.5, 0.5, 0.5), (3, 3)),
    ],
)
def test_a_window_is_a_part_of_the_whole_resized(part, shape):
    """Its filter reaches the pixels around it, and no further than the box that is decoded."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    window = window_around(part, (60, 80), shape)
    top, left, height, width = window.box
    actual = resample(image[top : top + height, left : left + width], window, shape)
    down = triangle_weights(60, shape[0], part[0], part[2])
    across = triangle_weights(80, shape[1], part[1], part[3])
    expected = np.einsum("ai,ijc,bj->abc", down, image.astype(float), across)
    assert np.abs(actual - expected).max() <= TWICE_ROUNDED
    assert height <= part[2] + 2 * max(part[2] / shape[0], 1) + 2
    assert width <= part[3] + 2 * max(part[3] / shape[1], 1) + 2


def test_a_fine_pattern_becomes_grey_but_for_the_fast_rule():
    """Stripes of one pixel, shrunk by 1.6: the mean, or waves of a quarter of the contrast."""
    stripes = np.tile(np.array([0, 255], np.uint8), (160, 80))[..., None].repeat(3, axis=2)
    box = Box(0, 0, 160, 160)
    assert resample(stripes, Window(box, *box), (100, 100)).std() < 0.15 * 127.5
    assert resize(stripes, (100, 100)).std() > 0.4 * 127.5


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 8), (4, 4)), ((8, 8), (7, 5)), ((30, 21), (16, 12)), ((9, 9), (1, 9)), ((5, 5), (5, 5))],
)
def test_shrinking_is_the_mean_over_areas(before, after, channels):
    """Unlike `resize`, by less than 2 too. Half of a level is the rounding to whole pixels."""
    image = np.random.default_rng(0).integers(0, 256, (*before, channels), dtype=np.uint8)
    out = np.empty((*after, channels), np.uint8)
    shrink(image, out)
    assert np.abs(out - resized(image, after, area_weights)).max() <= 0.5 + 1e-3
