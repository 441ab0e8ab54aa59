"""Random images, for tests and benchmarks."""

import ml_collections
import numpy as np

from lbsgd.data.source import Example, Splits, numbered_classes, read_labels


class SyntheticSource:
    """Random images and labels, each a function of (seed, index): for tests and benchmarks."""

    notes: tuple[str, ...] = ()

    def __init__(
        self, num_examples: int, image_shape: tuple[int, int, int], num_classes: int, seed: int
    ) -> None:
        self.num_examples, self.seed = num_examples, seed
        self.image_shape, self.classes = image_shape, numbered_classes(num_classes)
        self.fingerprint = f"synthetic {num_examples} {image_shape} {num_classes} {seed}"

    @property
    def labels(self) -> np.ndarray:
        return read_labels(self)

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.num_examples:
            raise IndexError(index)
        random = np.random.default_rng((self.seed, index))
        image = random.integers(0, 256, self.image_shape, dtype=np.uint8)
        return Example(image, int(random.integers(len(self.classes))))

    def name(self, index: int) -> str:
        return f"random image {index}"


def synthetic(config: ml_collections.ConfigDict) -> Splits:
    """Makes random images, as many as `synthetic_*` say."""
    shape = (config.image_size, config.image_size, 3)
    classes = config.synthetic_classes
    return Splits(
        SyntheticSource(config.synthetic_examples, shape, classes, seed=0),
        SyntheticSource(config.synthetic_validation_examples, shape, classes, seed=1),
    )
