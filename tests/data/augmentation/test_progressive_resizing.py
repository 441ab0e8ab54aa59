"""Progressive resizing: sizes by epoch, as FFCV's and Composer's rules have them."""

import numpy as np
import pytest

from lbsgd.data.augmentation.progressive_resizing import progressive_resizing
from lbsgd.system.errors import ConfigError


def sizes(shape, epochs, **options):
    resizing = progressive_resizing(shape, **options)
    return [resizing.image_size(epoch) for epoch in epochs]


def test_sizes_are_those_of_ffcv():
    """Its get_resolution: 160 px to 192 px from epoch 35 to 39, in multiples of 32."""

    def ffcv(epoch):
        if epoch <= 35:
            return 160
        if epoch >= 39:
            return 192
        between = np.interp([epoch], [35, 39], [160, 192])
        return int(np.round(between[0] / 32)) * 32

    options = {"start_epoch": 35, "end_epoch": 39, "start_scale": 160 / 192, "multiple": 32}
    found = sizes((192, 192, 3), range(60), **options)
    assert found == [(ffcv(epoch),) * 2 for epoch in range(60)]


def test_by_default_sizes_are_eighths_from_half_on():
    found = sizes((224, 224, 3), range(9), end_epoch=8)
    # In eighths by hand: 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8; ties to even.
    eighths = [4, 4, 5, 6, 6, 6, 7, 8, 8]
    assert found == [(28 * eighth, 28 * eighth) for eighth in eighths]


def test_both_sides_shrink_and_the_last_is_whole():
    found = sizes((30, 21, 1), range(5), end_epoch=4, multiple=4)
    # By hand: 15, 18.75, 22.5, 26.25 and 10.5, 13.125, 15.75, 18.375, to the nearest 4.
    assert found == [(16, 12), (20, 12), (24, 16), (28, 20), (30, 21)]


def test_it_may_jump_and_never_reaches_nothing():
    assert sizes((8, 8, 1), (0, 1, 2), start_epoch=2, end_epoch=2) == [(4, 4), (4, 4), (8, 8)]
    assert sizes((8, 8, 1), (0,), end_epoch=9, start_scale=0.01, multiple=3) == [(3, 3)]


def test_pixels_stay():
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    assert progressive_resizing((8, 8, 1), end_epoch=3)(images, None, None) is images


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"end_epoch": -1}, "end_epoch must be a number from 0 to"),
        ({"end_epoch": 3, "start_epoch": 4}, "end_epoch must be a number from 4 to"),
        ({"end_epoch": "3"}, "end_epoch must be a number from 0 to .*, not '3'"),
        ({"end_epoch": float("nan")}, "end_epoch must be a number"),
        ({"end_epoch": 3, "start_scale": 0}, "start_scale must be a number from 0.01 to 1"),
        ({"end_epoch": 3, "multiple": 9}, "multiple must be a whole number from 0 to 8"),
    ],
)
def test_options_out_of_range_are_an_error(options, says):
    with pytest.raises(ConfigError, match=says):
        progressive_resizing((8, 8, 1), **options)
