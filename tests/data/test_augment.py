"""CropAndFlip against an example-by-example account of what it should do."""

import numpy as np
import pytest
from scipy import stats

from lbsgd.data.augment import CropAndFlip
from lbsgd.data.order import random_below

TINY = 1e-6  # the chance that a good generator fails a statistical test


def batch(count: int, height: int = 6, width: int = 5, channels: int = 3):
    """Images, epochs and examples of a batch that straddles epochs."""
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return images, random.integers(0, 3, count), random.integers(0, 10**6, count)


def apply(augment, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """What an augmentation makes of images, which are left as they are."""
    changed = images.copy()
    augment(changed, epochs, examples)
    return changed


def draw(bound: int, seed: int, purpose: str, epoch: int, example: int) -> int:
    return int(random_below(bound, seed, purpose, np.array([epoch]), np.array([example]))[0])


def augmented(
    image: np.ndarray, seed: int, epoch: int, example: int, padding: int, flip: bool
) -> np.ndarray:
    """The pixels one by one: zero where the crop window lies outside the image."""
    height, width, _ = image.shape
    top = draw(2 * padding + 1, seed, "crop top", epoch, example) - padding
    left = draw(2 * padding + 1, seed, "crop left", epoch, example) - padding
    mirror = flip and draw(2, seed, "flip", epoch, example) == 1
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            from_row = top + row
            from_column = left + (width - 1 - column if mirror else column)
            if 0 <= from_row < height and 0 <= from_column < width:
                out[row, column] = image[from_row, from_column]
    return out


def offsets(padding: int, flip: bool, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the crops of `count` examples begin and whether they are flipped, read off pixels.

    Each pixel holds its own row and column; the image is odd-sized, so flipping leaves the
    middle pixel, and big enough for it to lie in every crop.
    """
    size = 2 * padding + 3
    middle = size // 2
    image = np.stack(np.indices((size, size), np.uint8), axis=-1)
    images = np.broadcast_to(image, (count, *image.shape))
    crops = apply(CropAndFlip(0, padding, flip), images, np.zeros(count, int), np.arange(count))
    top, left = np.moveaxis(crops[:, middle, middle].astype(int) - middle + padding, -1, 0)
    flipped = crops[:, middle, middle + 1, 1] < crops[:, middle, middle - 1, 1]
    return top, left, flipped


@pytest.mark.parametrize("padding", [0, 1, 4, 8])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_a_pixel_by_pixel_account(padding, flip, channels):
    images, epochs, examples = batch(20, channels=channels)
    actual = apply(CropAndFlip(7, padding, flip), images, epochs, examples)
    assert actual.dtype == np.uint8
    assert actual.shape == images.shape
    for i in range(20):
        expected = augmented(images[i], 7, epochs[i], examples[i], padding, flip)
        np.testing.assert_array_equal(actual[i], expected)


def test_every_crop_and_flip_is_equally_likely():
    """9 x 9 offsets and two directions: 162 kinds, all independent of one another."""
    count = 162 * 50
    top, left, flipped = offsets(4, True, count)
    kinds = np.bincount((9 * top + left) * 2 + flipped, minlength=162)
    assert len(kinds) == 162
    assert kinds.min() > 0
    assert ((kinds - 50) ** 2 / 50).sum() < stats.chi2.isf(TINY, 161)


@pytest.mark.parametrize("padding", [0, 1])
def test_half_of_the_examples_are_flipped(padding):
    flipped = offsets(padding, True, 5000)[2]
    low, high = stats.binom.interval(1 - TINY, 5000, 0.5)
    assert low <= flipped.sum() <= high


def test_nothing_is_flipped_or_cropped_unless_asked():
    images, epochs, examples = batch(10)
    np.testing.assert_array_equal(apply(CropAndFlip(0), images, epochs, examples), images)
    assert not offsets(1, False, 100)[2].any()


def test_an_example_is_augmented_alike_in_any_batch():
    images, epochs, examples = batch(40)
    augment = CropAndFlip(3, 4, True)
    whole = apply(augment, images, epochs, examples)
    shuffled = np.random.default_rng(1).permutation(40)
    for part in ([0], [39], range(7, 19), shuffled, shuffled[:11]):
        i = np.array(part)
        np.testing.assert_array_equal(apply(augment, images[i], epochs[i], examples[i]), whole[i])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("epoch", [0, 1])
def test_seed_and_epoch_change_the_augmentation(seed, epoch):
    """Of 100 images of noise 1 in 162 comes out alike by chance."""
    images, _, examples = batch(100)
    here = apply(CropAndFlip(seed, 4, True), images, np.full(100, epoch), examples)
    for other_seed, other_epoch in [(seed + 1, epoch), (seed, epoch + 1)]:
        there = apply(CropAndFlip(other_seed, 4, True), images, np.full(100, other_epoch), examples)
        alike = (here == there).all(axis=(1, 2, 3)).sum()
        assert alike <= stats.binom.isf(TINY, 100, 1 / 162)
