"""The size of images by update, where it changes with the epoch: a few sizes, known beforehand."""

import bisect
import dataclasses
from collections.abc import Iterator

from lbsgd.data.augmentation.named import Augmentation
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError

Size = tuple[int, int]
# Each is a step to be compiled, which for a large network takes minutes.
MOST_SIZES = 8
# Whose sizes are asked for one by one.
MOST_EPOCHS = 10_000


@dataclasses.dataclass(frozen=True)
class ImageSizes:
    """Knows `(h, w)` of the images of each update.

    Attributes:
      starts: pairs of an update and the size from there on, the first at update 0.
    """

    starts: tuple[tuple[int, Size], ...]

    def __call__(self, update: int) -> Size:
        """Returns the size at an update index."""
        at = bisect.bisect_right(self.starts, update, key=lambda start: start[0])
        return self.starts[at - 1][1]

    @property
    def distinct(self) -> list[Size]:
        """The sizes, each once, in order."""
        return list(dict.fromkeys(size for _, size in self.starts))

    def smaller_than(self, image_shape: tuple[int, int, int]) -> list[Size]:
        """Lists the sizes other than that of whole images, each once."""
        return [size for size in self.distinct if size != image_shape[:2]]

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int, Size]]:
        """Yields the stretches of updates start..stop-1: the first, the one past them, the size."""
        ends = [first for first, _ in self.starts[1:]] + [stop]
        for (first, size), end in zip(self.starts, ends):
            if max(first, start) < min(end, stop):
                yield max(first, start), min(end, stop), size


def plan_image_sizes(
    augmentation: Augmentation | None,
    image_shape: tuple[int, int, int],
    timeline: Timeline,
    total_updates: int,
) -> ImageSizes:
    """Finds the sizes of a run: an update has that of the epoch in which its first example lies.

    So a minibatch has one size.

    Args:
      augmentation: which may say the size of an epoch.
      image_shape: `(h, w, c)` of whole images.

    Raises:
      ConfigError: more sizes than are worth compiling, or epochs than can be asked for.
    """
    if augmentation is None or not augmentation.resizes:
        return ImageSizes(((0, image_shape[:2]),))
    count = timeline.examples_per_epoch
    starts: list[tuple[int, Size]] = []
    update = 0
    for _ in range(MOST_EPOCHS):
        epoch = timeline.examples_seen(update) // count
        size = augmentation.image_size(epoch)
        if not starts or starts[-1][1] != size:
            starts.append((update, size))
        update = bisect.bisect_left(
            range(total_updates), (epoch + 1) * count, key=timeline.examples_seen
        )
        if update >= total_updates:
            return _few(ImageSizes(tuple(starts)))
    raise ConfigError(f"data.augment has sizes for {MOST_EPOCHS:,} epochs at most; train for fewer")


def _few(sizes: ImageSizes) -> ImageSizes:
    count = len(sizes.distinct)
    if count > MOST_SIZES:
        raise ConfigError(
            f"data.augment makes images of {count} sizes, and the update is compiled for each; "
            f"for at most {MOST_SIZES} raise what they are rounded to "
            "(data.augment_options.multiple of progressive_resizing)"
        )
    return sizes
