"""Each operation against Pillow's own function: the same pixels, bitwise."""

import numpy as np
import pillow_operations
import pytest

from lbsgd.data.augmentation.operations import OPERATIONS

SHAPES = [(32, 32, 3), (17, 40, 3), (33, 20, 1), (8, 8, 1), (2, 2, 3), (1, 5, 1)]
MAGNITUDES = {
    "TranslateX": np.linspace(-33.7, 33.7, 12),
    "TranslateY": np.linspace(-33.7, 33.7, 12),
    # With quarters of a turn, which Pillow does in another way where the image is square.
    "Rotate": [*np.linspace(-135, 135, 13), 90.0, -90.0, 180.0, 0.0, 30 * 9 / 30],
    "Posterize": range(1, 9),
    "Solarize": [*np.linspace(255, 0, 31)],
}


def images() -> list[np.ndarray]:
    """Noise of much and of little contrast, of one value, and sorted, so that levels differ."""
    random = np.random.default_rng(0)
    found = []
    for shape in SHAPES:
        found += [
            random.integers(low, high, shape).astype(np.uint8)
            for low, high in ((0, 256), (90, 140), (7, 8))
        ]
        found.append(np.sort(found[-3], axis=0))
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_are_those_of_pillow(name):
    for image in images():
        before = image.copy()
        for magnitude in MAGNITUDES.get(name, np.linspace(-0.99, 0.99, 11)):
            found = OPERATIONS[name](image, float(magnitude))
            assert (found.dtype, found.shape) == (np.uint8, image.shape)
            expected = pillow_operations.apply(name, image, float(magnitude))
            np.testing.assert_array_equal(found, expected, err_msg=f"{image.shape} {magnitude}")
        np.testing.assert_array_equal(image, before)


def test_levels_past_the_last_are_cut():
    """Where 300 pixels of one level leave a step of 1, levels would go on to 300."""
    image = np.concatenate([np.full(300, 3), np.full(100, 200)]).reshape(20, 20, 1).astype(np.uint8)
    found = OPERATIONS["Equalize"](image, 0.0)
    np.testing.assert_array_equal(found, pillow_operations.apply("Equalize", image, 0.0))
    assert set(found.ravel()) == {0, 255}
