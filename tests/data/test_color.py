"""Color against a pixel-by-pixel account, and the distributions of what it draws."""

import itertools
import statistics

import numpy as np
import pytest
from scipy import stats

from lbsgd.data.augment import Color
from lbsgd.data.order import uniform

TINY = 1e-6  # the chance that a good generator fails a statistical test
COUNT = 20_000

# As fb.resnet.torch gives them for ImageNet: datasets/imagenet.lua.
EIGENVALUES = [0.2175, 0.0188, 0.0045]
EIGENVECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]

# OpenCV rounds the map to multiples of 2^-10 and then the pixel to a whole number.
ROUNDING = 0.5 + (3 * 255 + 1) * 2**-11


def grey(pixel: np.ndarray) -> float:
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def brute_force(image: np.ndarray, factors, order, amounts) -> np.ndarray:
    """fb.resnet.torch's ColorJitter and Lighting in float64, not yet rounded and clipped."""
    pixels = image.reshape(-1, 3).astype(float)
    for kind in order:
        others = np.zeros_like(pixels)  # of brightness
        if kind == "contrast":
            others[:] = statistics.fmean(grey(pixel) for pixel in pixels)
        if kind == "saturation":
            others[:] = [[grey(pixel)] * 3 for pixel in pixels]
        pixels = factors[kind] * pixels + (1 - factors[kind]) * others
    for channel in range(3):
        for component in range(3):
            light = EIGENVECTORS[channel][component] * amounts[component] * EIGENVALUES[component]
            pixels[:, channel] += 255 * light
    return pixels.reshape(image.shape)


def batch(count: int, height: int = 5, width: int = 4):
    """Images of noise, dark ones and bright ones, of a batch that straddles epochs."""
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, height, width, 3))
    scale = np.arange(count).reshape(-1, 1, 1, 1) % 3  # as it is, dark, bright
    images = np.where(scale == 1, images // 8, np.where(scale == 2, 255 - images // 8, images))
    return images.astype(np.uint8), random.integers(0, 3, count), random.integers(0, 10**6, count)


def apply(color: Color, images: np.ndarray, epochs: np.ndarray, examples: np.ndarray):
    changed = images.copy()
    color(changed, epochs, examples)
    return changed


def drawn_maps(color: Color, mean=(90.0, 120.0, 150.0), epoch: int = 0) -> np.ndarray:
    """The maps of examples 0..COUNT-1, whose images have one mean."""
    means = np.broadcast_to(np.array(mean), (COUNT, 3))
    return color.maps(means, np.full(COUNT, epoch), np.arange(COUNT))


def recovered_factors(maps: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Brightness b, contrast c and saturation s of maps without lighting, `[N, 3]`.

    Grey stays grey: (1, 1, 1) becomes b c (1, 1, 1), and the offset is b (1 - c) grey(mean). What
    pure red becomes differs by b c s between red and green.
    """
    both = maps[:, 0, :3].sum(1)
    brightness = both + maps[:, 0, 3] / grey(mean)
    saturation = (maps[:, 0, 0] - maps[:, 1, 0]) / both
    return np.stack([brightness, both / brightness, saturation], axis=1)


@pytest.mark.parametrize(
    "jitter", [(0.4, 0, 0), (0, 0.4, 0), (0, 0, 0.4), (0.4, 0.3, 0.2), (1,) * 3]
)
@pytest.mark.parametrize("lighting", [0.0, 0.1, 3.0])
def test_agrees_with_a_pixel_by_pixel_account(jitter, lighting):
    """Without clipping in between the three changes give the same in any order."""
    images, epochs, examples = batch(12)
    actual = apply(Color(7, jitter, lighting), images, epochs, examples).astype(float)
    draws = uniform(7, "color", epochs, examples, 6)
    normal = statistics.NormalDist()
    for i, draw in enumerate(draws):
        kinds = ("brightness", "contrast", "saturation")
        factors = {kind: 1 + j * (2 * u - 1) for kind, j, u in zip(kinds, jitter, draw)}
        amounts = [lighting * normal.inv_cdf(u) for u in draw[3:]]
        for order in itertools.permutations(kinds):
            exact = brute_force(images[i], factors, order, amounts)
            expected = np.clip(exact, 0, 255)
            assert np.abs(actual[i] - expected).max() <= ROUNDING


def test_pixels_are_clipped_at_both_ends():
    """Far beyond 0 and 255 there is nothing to round: black and white."""
    images, epochs, examples = batch(60)
    color = Color(1, (1.0, 1.0, 1.0), 3.0)
    actual = apply(color, images, epochs, examples)
    maps = color.maps(images.mean(axis=(1, 2)), epochs, examples)
    exact = np.einsum("nij,nhwj->nhwi", maps[..., :3], images) + maps[:, None, None, :, 3]
    assert (exact < -300).any()
    assert (exact > 600).any()
    assert (actual[exact < -1] == 0).all()
    assert (actual[exact > 256] == 255).all()


@pytest.mark.parametrize("jitter", [(0.4, 0.4, 0.4), (0.1, 0.5, 1.0)])
def test_factors_are_uniform_and_independent(jitter):
    mean = np.array((90.0, 120.0, 150.0))
    factors = recovered_factors(drawn_maps(Color(3, jitter), mean), mean)
    ranks = (factors - 1 + np.array(jitter)) / (2 * np.array(jitter))
    assert ranks.min() >= -1e-9
    assert ranks.max() <= 1 + 1e-9
    for rank in ranks.T:
        assert stats.kstest(rank, stats.uniform.cdf).pvalue > TINY
    cells = np.minimum((3 * ranks).astype(int), 2) @ (9, 3, 1)
    counts = np.bincount(cells, minlength=27)
    assert ((counts - COUNT / 27) ** 2 / (COUNT / 27)).sum() < stats.chi2.isf(TINY, 26)


@pytest.mark.parametrize("lighting", [0.1, 0.5])
def test_lighting_has_the_covariance_of_the_principal_components(lighting):
    """The mean of products of normals: variance (S_ii S_jj + S_ij^2) / N of each entry."""
    maps = drawn_maps(Color(3, lighting=lighting))
    np.testing.assert_array_equal(maps[..., :3], np.broadcast_to(np.eye(3), (COUNT, 3, 3)))
    light = maps[..., 3]
    vectors, values = np.array(EIGENVECTORS).T, EIGENVALUES
    expected = sum((255 * lighting * v) ** 2 * np.outer(e, e) for v, e in zip(values, vectors))
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / COUNT)
    z = stats.norm.isf(TINY / 2 / 6)
    assert (np.abs(light.T @ light / COUNT - expected) <= z * spread).all()


def test_amounts_of_light_are_normal():
    light = drawn_maps(Color(4, lighting=0.1))[..., 3]
    amounts = np.linalg.solve(255 * np.array(EIGENVECTORS) * EIGENVALUES, light.T)
    for amount in amounts:
        assert stats.kstest(amount, stats.norm(0, 0.1).cdf).pvalue > TINY
    for one, other in itertools.combinations(amounts, 2):
        assert stats.spearmanr(one, other).pvalue > TINY
        assert stats.spearmanr(np.abs(one), np.abs(other)).pvalue > TINY


def test_light_does_not_depend_on_the_factors():
    mean = np.array((90.0, 120.0, 150.0))
    light = drawn_maps(Color(3, lighting=0.1))[:, 0, 3]
    factors = recovered_factors(drawn_maps(Color(3, (0.4, 0.4, 0.4)), mean), mean)
    for factor in factors.T:
        assert stats.spearmanr(light, factor).pvalue > TINY


def test_off_is_the_identity():
    images, epochs, examples = batch(20)
    np.testing.assert_array_equal(apply(Color(0), images, epochs, examples), images)


def test_a_grey_image_stays_grey_without_lighting():
    images = np.repeat(batch(20)[0][..., :1], 3, axis=-1)
    changed = apply(Color(0, (0.5, 0.5, 0.5)), images, np.zeros(20, int), np.arange(20))
    assert (changed != images).any()
    # The rows of the map add up to one number, each coefficient rounded on its own.
    assert np.ptp(changed.astype(int), axis=-1).max() <= 1


def test_an_example_is_changed_alike_in_any_batch():
    images, epochs, examples = batch(40)
    color = Color(3, (0.4, 0.4, 0.4), 0.1)
    whole = apply(color, images, epochs, examples)
    shuffled = np.random.default_rng(1).permutation(40)
    for part in ([0], [39], range(7, 19), shuffled, shuffled[:11]):
        i = np.array(part)
        np.testing.assert_array_equal(apply(color, images[i], epochs[i], examples[i]), whole[i])


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (1, 1)])
def test_seeds_and_epochs_have_colours_of_their_own(seed, epoch):
    mean = np.array((90.0, 120.0, 150.0))
    jitter = (0.4, 0.4, 0.4)
    here = recovered_factors(drawn_maps(Color(0, jitter), mean), mean)
    there = recovered_factors(drawn_maps(Color(seed, jitter), mean, epoch), mean)
    for one, other in zip(here.T, there.T):
        assert stats.spearmanr(one, other).pvalue > TINY
