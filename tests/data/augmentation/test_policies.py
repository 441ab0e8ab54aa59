"""RandAugment and TrivialAugment against a loop over Pillow, and how their draws spread."""

import numpy as np
import pillow_operations
import pytest
from scipy import stats

from lbsgd.data.augmentation.policies import rand_augment, trivial_augment
from lbsgd.data.order import random_below
from lbsgd.system.errors import ConfigError

TINY = 1e-6  # the chance that a good generator fails a statistical test
SHAPE = (24, 33, 3)
NAMES = "Identity ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness "
NAMES = (NAMES + "Posterize Solarize AutoContrast Equalize").split()
SIGNED = NAMES[1:10]
SEED = 5


def rand_magnitude(name: str, m: int) -> float:
    """torchvision's RandAugment._augmentation_space, bin m of 31, by hand; images of SHAPE."""
    share = m / 30
    return {
        "ShearX": 0.3 * share,
        "ShearY": 0.3 * share,
        "TranslateX": 150 / 331 * SHAPE[1] * share,
        "TranslateY": 150 / 331 * SHAPE[0] * share,
        "Rotate": 30 * share,
        "Posterize": 8 - round(m / 7.5),
        "Solarize": 255 - 255 * share,
    }.get(name, 0.9 * share)


def trivial_magnitude(name: str, m: int) -> float:
    """torchvision's TrivialAugmentWide._augmentation_space, bin m of 31, by hand."""
    share = m / 30
    return {
        "TranslateX": 32 * share,
        "TranslateY": 32 * share,
        "Rotate": 135 * share,
        "Posterize": 8 - round(m / 5),
        "Solarize": 255 - 255 * share,
    }.get(name, 0.99 * share)


def batch(count: int, shape=SHAPE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, *shape)).astype(np.uint8)
    return images, random.integers(0, 3, count), random.permutation(1000)[:count]


def draw(bound: int, purpose: str, epoch: int, example: int) -> int:
    return int(random_below(bound, SEED, purpose, np.array([epoch]), np.array([example]))[0])


def by_pillow(image, policy, epoch, example, layers, magnitude_of, fixed=None):
    for layer in range(layers):
        name = NAMES[draw(14, f"{policy} operation {layer}", epoch, example)]
        m = draw(31, f"{policy} magnitude {layer}", epoch, example) if fixed is None else fixed
        sign = -1 if draw(2, f"{policy} sign {layer}", epoch, example) and name in SIGNED else 1
        image = pillow_operations.apply(name, image, sign * magnitude_of(name, m))
    return image


@pytest.mark.parametrize(("layers", "magnitude"), [(2, 9), (1, 30), (3, 0)])
def test_rand_augment_is_a_loop_over_pillow(layers, magnitude):
    images, epochs, examples = batch(80)
    policy = rand_augment(SEED, SHAPE, num_ops=layers, magnitude=magnitude)
    found = policy(images.copy(), epochs, examples)
    assert found.dtype == np.uint8
    for image, out, epoch, example in zip(images, found, epochs, examples):
        numbers = ("rand_augment", epoch, example, layers, rand_magnitude, magnitude)
        np.testing.assert_array_equal(out, by_pillow(image, *numbers))


def test_trivial_augment_is_a_loop_over_pillow():
    images, epochs, examples = batch(80)
    found = trivial_augment(SEED, SHAPE)(images.copy(), epochs, examples)
    for image, out, epoch, example in zip(images, found, epochs, examples):
        numbers = ("trivial_augment", epoch, example, 1, trivial_magnitude)
        np.testing.assert_array_equal(out, by_pillow(image, *numbers))


def test_defaults_are_those_of_the_paper():
    policy = rand_augment(SEED, SHAPE)
    assert (policy.num_ops, policy.bin) == (2, 9)


def is_uniform(counts: np.ndarray) -> bool:
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum() < stats.chi2.isf(TINY, counts.size - 1)


def test_operations_magnitudes_and_signs_are_equally_likely_and_independent():
    count = 14 * 31 * 2 * 40
    policy = trivial_augment(SEED, SHAPE)
    ((operation, magnitude, sign),) = np.moveaxis(
        policy.draw(np.zeros(count, int), np.arange(count)), 2, 1
    )
    kinds = (operation * 31 + magnitude) * 2 + sign
    assert is_uniform(np.bincount(kinds, minlength=14 * 31 * 2))


def test_layers_are_independent():
    count = 14 * 14 * 4 * 40
    drawn = rand_augment(SEED, SHAPE).draw(np.zeros(count, int), np.arange(count))
    (first, m1, sign1), (second, m2, sign2) = np.moveaxis(drawn, 2, 1)
    assert is_uniform(np.bincount(((first * 14 + second) * 2 + sign1) * 2 + sign2))
    assert set(m1) == set(m2) == {9}


@pytest.mark.parametrize("make", [rand_augment, trivial_augment])
def test_an_example_is_augmented_alike_in_any_batch_and_otherwise_in_others(make):
    images, epochs, examples = batch(40)
    images[:] = images[0]
    whole = make(SEED, SHAPE)(images.copy(), epochs, examples)
    for part in ([0], range(7, 19), np.random.default_rng(1).permutation(40)):
        i = np.array(part)
        again = make(SEED, SHAPE)(images[i], epochs[i], examples[i])
        np.testing.assert_array_equal(again, whole[i])
    for seed, epoch in ((SEED + 1, epochs), (SEED, epochs + 1)):
        other = make(seed, SHAPE)(images.copy(), epoch, examples)
        # Two policies take the same operation once in 14.
        assert (other == whole).all(axis=(1, 2, 3)).sum() < 20


@pytest.mark.parametrize("make", [rand_augment, trivial_augment])
def test_images_of_one_channel_are_augmented_too(make):
    images, epochs, examples = batch(60, (8, 8, 1))
    found = make(SEED, (8, 8, 1))(images.copy(), epochs, examples)
    assert found.shape == images.shape
    assert (found != images).any(axis=(1, 2, 3)).sum() > 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"magnitude": 31}, r"data.augment_options.magnitude must be .* from 0 to 30, not 31"),
        ({"magnitude": True}, "from 0 to 30, not True"),
        ({"magnitude": 9.0}, "from 0 to 30, not 9.0"),
        ({"num_ops": 0}, "from 1 to 14, not 0"),
    ],
)
def test_options_out_of_range_are_an_error(options, says):
    with pytest.raises(ConfigError, match=says):
        rand_augment(SEED, SHAPE, **options)


@pytest.mark.parametrize("make", [rand_augment, trivial_augment])
def test_four_channels_are_an_error(make):
    with pytest.raises(ConfigError, match="of 1 or 3 channels, these are 8x8x4"):
        make(SEED, (8, 8, 4))
