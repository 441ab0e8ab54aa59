"""Image sizes by update, against a walk over all updates."""

import itertools

import numpy as np
import pytest

from lbsgd.data.augmentation.progressive_resizing import progressive_resizing
from lbsgd.data.image_sizes import ImageSizes, plan_image_sizes
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError

SHAPE = (64, 48, 3)


class Sized:
    """An augmentation of the sizes by epoch, which notes the epochs that it is asked for."""

    resizes = True

    def __init__(self, *sizes):
        self.sizes, self.asked = sizes, []

    def image_size(self, epoch):
        self.asked.append(epoch)
        return self.sizes[min(epoch, len(self.sizes) - 1)]


SMALL, MIDDLE, WHOLE = (16, 12), (32, 24), (64, 48)


@pytest.mark.parametrize(
    "schedule",
    [
        [(0, 16)],
        [(0, 33)],
        [(0, 10), (2, 25), (3, 70)],
        [(0, 250)],  # more than two epochs in a batch
    ],
)
@pytest.mark.parametrize("total", [1, 2, 7, 40])
def test_an_update_has_the_size_of_the_epoch_of_its_first_example(schedule, total):
    timeline = Timeline.from_schedule(100, schedule)
    sizes = plan_image_sizes(Sized(SMALL, SMALL, MIDDLE, SMALL, WHOLE), SHAPE, timeline, total)
    by_epoch = [SMALL, SMALL, MIDDLE, SMALL, *[WHOLE] * 100]
    expected = [by_epoch[timeline.examples_seen(t) // 100] for t in range(total)]
    assert [sizes(t) for t in range(total)] == expected
    assert sizes.distinct == list(dict.fromkeys(expected))
    assert len(sizes.starts) == len(list(itertools.groupby(expected)))
    for start in range(total):
        spread = [size for a, b, size in sizes.between(start, total) for _ in range(a, b)]
        assert spread == expected[start:]


def test_each_epoch_with_an_update_is_asked_for_once():
    sized = Sized(SMALL, WHOLE)
    plan_image_sizes(sized, SHAPE, Timeline.constant(100, 250), 4)
    assert sized.asked == [0, 2, 5, 7]


def test_without_a_say_images_are_whole():
    timeline = Timeline.constant(100, 10)
    assert plan_image_sizes(None, SHAPE, timeline, 50) == ImageSizes(((0, WHOLE),))


def test_too_many_sizes_name_what_to_raise():
    class Grown(Sized):
        def image_size(self, epoch):
            return progressive.image_size(epoch)

    timeline = Timeline.constant(100, 10)
    progressive = progressive_resizing((64, 64, 3), end_epoch=20, multiple=4)
    with pytest.raises(ConfigError, match=r"of 9 sizes, .* raise .*augment_options\.multiple"):
        plan_image_sizes(Grown(), SHAPE, timeline, 300)
    # A run that ends before has but some of them.
    assert len(plan_image_sizes(Grown(), SHAPE, timeline, 180).distinct) == 8
    progressive = progressive_resizing((64, 64, 3), end_epoch=20, multiple=5)
    assert len(plan_image_sizes(Grown(), SHAPE, timeline, 300).distinct) <= 8


def test_more_epochs_than_can_be_asked_for_are_an_error():
    alternating = Sized(SMALL)
    with pytest.raises(ConfigError, match="10,000 epochs at most"):
        plan_image_sizes(alternating, SHAPE, Timeline.constant(1, 1), 10**8)
    assert np.array_equal(alternating.asked, np.arange(10_000))
