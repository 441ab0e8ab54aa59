"""Mixing against pixel loops, and its draws against scalar accounts of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lbsgd.data.mixing import Mixing
from lbsgd.step.pixels import erase, mix, partner

TINY = 1e-6  # the chance that a good generator fails a statistical test
COUNT = 20_000
SHAPE = (48, 64, 3)


def drawn(count: int = COUNT, seed: int = 0, shape: tuple[int, int, int] = SHAPE, **chances):
    """The draws of examples 0..count-1 in epoch 2."""
    mixing = Mixing(seed, **{"mixup": 0, "cutmix": 0, "erasing": 0, **chances}, image_shape=shape)
    return mixing.draw(np.full(count, 2), np.arange(count))


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert stats.ks_2samp(ours, theirs, method="asymp").pvalue > TINY


def statistics(boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Of boxes `[N, 4]`, with what shows whether the sides depend on one another as they should."""
    top, left, height, width = boxes.T.astype(float)
    return {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "area": height * width,
        "aspect": height / np.maximum(width, 1),
        "across": top - left,
        "middle": top + left + (height + width) / 2,
        "beyond": top + height,
    }


def cutmix_box(random: np.random.Generator, alpha: float) -> list[int]:
    """One box of Yun et al. (2019), after algorithm A1 and the text."""
    share = random.beta(alpha, alpha)
    sides = []
    for length in SHAPE[:2]:
        cut = int(length * (1 - share) ** 0.5)
        centre = random.integers(length)
        low = min(max(centre - cut // 2, 0), length)
        high = min(max(centre + cut // 2, 0), length)
        sides.append((low, high - low))
    return [sides[0][0], sides[1][0], sides[0][1], sides[1][1]]


def erase_box(random: np.random.Generator, shape: tuple[int, int, int]) -> list[int]:
    """One box of Zhong et al. (2017), algorithm 1: of any that fit, anywhere it fits."""
    while True:
        area = random.uniform(0.02, 0.4) * shape[0] * shape[1]
        aspect = random.uniform(0.3, 1 / 0.3)
        height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if height <= shape[0] and width <= shape[1]:
            top = random.integers(shape[0] - height, endpoint=True)
            left = random.integers(shape[1] - width, endpoint=True)
            return [top, left, height, width]


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 8.0])
def test_share_of_mixup_has_the_beta_distribution(alpha):
    """In float32, which has many of Beta(0.2, 0.2) at exactly 1."""
    theirs = stats.beta(alpha, alpha).rvs(10 * COUNT, random_state=0).astype(np.float32)
    assert_same_distribution(drawn(mixup=alpha)["mix_share"], theirs)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_share_of_running_mixup_is_the_larger_part_of_the_beta_distribution(alpha):
    theirs = stats.beta(alpha, alpha).rvs(10 * COUNT, random_state=0)
    share = drawn(running=alpha)["running_share"]
    assert_same_distribution(share, np.maximum(theirs, 1 - theirs).astype(np.float32))
    assert share.min() >= 0.5


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_boxes_of_cutmix_are_those_of_the_paper(alpha):
    random = np.random.default_rng(1)
    theirs = statistics(np.array([cutmix_box(random, alpha) for _ in range(COUNT)]))
    for name, ours in statistics(drawn(cutmix=alpha)["mix_box"]).items():
        assert_same_distribution(ours, theirs[name])


def test_share_of_cutmix_is_the_area_that_is_left():
    draw = drawn(cutmix=1.0)
    _, _, height, width = draw["mix_box"].T.astype(np.int64)
    area = 48 * 64 - height * width
    np.testing.assert_array_equal(draw["mix_share"], (area / (48 * 64)).astype(np.float32))
    assert draw["mix_share"].min() < 0.1
    assert draw["mix_share"].max() == 1


@pytest.mark.parametrize("shape", [SHAPE, (224, 224, 3), (40, 12, 1)])
def test_erased_boxes_are_those_of_the_paper(shape):
    random = np.random.default_rng(2)
    theirs = statistics(np.array([erase_box(random, shape) for _ in range(COUNT)]))
    for name, ours in statistics(drawn(erasing=1.0, shape=shape)["erase_box"]).items():
        assert_same_distribution(ours, theirs[name])


def test_erased_boxes_of_another_area_and_aspect_that_lie_or_stand():
    """As chainerkfac draws them: area U(0.02, 0.25), aspect U(0.3, 1), turned half of the time."""
    random, shape = np.random.default_rng(4), (224, 224, 3)
    theirs = []
    for _ in range(COUNT):
        area, aspect = random.uniform(0.02, 0.25) * 224 * 224, random.uniform(0.3, 1.0)
        sides = [round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)]
        height, width = sides[:: random.choice([1, -1])]
        place = [random.integers(0, 224 - side, endpoint=True) for side in (height, width)]
        theirs.append([*place, height, width])
    mixing = Mixing(0, 0.0, 0.0, 1.0, shape, (0.02, 0.25), (0.3, 1.0), erased_transpose=True)
    ours = mixing.draw(np.full(COUNT, 2), np.arange(COUNT))["erase_box"]
    expected = statistics(np.array(theirs))
    for name, values in statistics(ours).items():
        assert_same_distribution(values, expected[name])
    # Turned, and else the same.
    upright = Mixing(0, 0.0, 0.0, 1.0, shape, (0.02, 0.25), (0.3, 1.0))
    sides = upright.draw(np.full(COUNT, 2), np.arange(COUNT))["erase_box"][:, 2:]
    np.testing.assert_array_equal(np.sort(ours[:, 2:]), np.sort(sides))
    assert (sides[:, 0] <= sides[:, 1]).all()


# The draws of before there were keys for them, for runs are the same from version to version.
BOXES_OF_SEED_5 = (
    "5 15 17 17, 6 12 19 10, 9 17 18 6, 7 9 13 21, 0 13 29 14, 3 13 25 13, 3 19 13 8, 0 0 0 0"
)


def test_erased_boxes_are_those_of_older_versions():
    mixing = Mixing(5, 0.0, 0.0, 0.75, (32, 32, 3))
    found = mixing.draw(np.full(8, 3), np.arange(8))["erase_box"]
    assert [" ".join(map(str, box)) for box in found.tolist()] == BOXES_OF_SEED_5.split(", ")


@pytest.mark.parametrize("probability", [0.01, 0.25, 0.5, 0.9])
def test_erasing_happens_as_often_as_asked(probability):
    boxes = drawn(erasing=probability)["erase_box"]
    low, high = stats.binom.interval(1 - TINY, COUNT, probability)
    erased = boxes[:, 2] > 0
    assert low <= erased.sum() <= high
    assert not boxes[~erased].any()


def test_no_box_of_an_image_too_narrow_for_any():
    """Of a column of 10,000 pixels at least 200: 8 wide at the least."""
    assert not drawn(200, erasing=1.0, shape=(10_000, 1, 3))["erase_box"].any()


@pytest.mark.parametrize("shape", [(8, 8, 1), (1, 1, 3), (5, 90, 3)])
def test_boxes_lie_within_the_image(shape):
    draw = drawn(cutmix=0.3, erasing=1.0, shape=shape)
    for name in ("mix_box", "erase_box"):
        top, left, height, width = draw[name].T
        assert draw[name].min() >= 0
        assert (top + height).max() <= shape[0]
        assert (left + width).max() <= shape[1]
    assert draw["mix_share"].min() >= 0
    assert draw["mix_share"].max() <= 1


def test_half_of_the_examples_take_cutmix_where_there_is_mixup_too():
    """Each with its own alpha: boxes of Beta(500, 500) are never empty."""
    draw = drawn(mixup=0.4, cutmix=500.0)
    cut = draw["mix_box"][:, 2] > 0
    low, high = stats.binom.interval(1 - TINY, COUNT, 0.5)
    assert low <= cut.sum() <= high
    assert not draw["mix_box"][~cut].any()
    blended = stats.beta(0.4, 0.4).rvs(10 * COUNT, random_state=0).astype(np.float32)
    assert_same_distribution(draw["mix_share"][~cut], blended)
    random = np.random.default_rng(3)
    theirs = statistics(np.array([cutmix_box(random, 500.0) for _ in range(COUNT)]))
    for name, ours in statistics(draw["mix_box"][cut]).items():
        assert_same_distribution(ours, theirs[name])


def test_the_draws_of_an_example_do_not_hang_together():
    """Nor do those of one example with those of the next."""
    draw = drawn(mixup=1.0, cutmix=500.0, erasing=0.5)
    cut, erased = draw["mix_box"][:, 2] > 0, draw["erase_box"][:, 2] > 0
    pairs = [
        (cut, erased),
        (draw["mix_box"][cut, 0], draw["mix_box"][cut, 1]),
        (draw["mix_share"][~cut], erased[~cut]),
        (draw["mix_share"][~cut & erased], draw["erase_box"][~cut & erased].prod(axis=1)),
        (draw["mix_share"][~cut][:-1], draw["mix_share"][~cut][1:]),
        (cut[:-1], cut[1:]),
        (erased[:-1], erased[1:]),
    ]
    for one, other in pairs:
        assert stats.spearmanr(one, other).pvalue > TINY


@pytest.mark.parametrize(
    ("chances", "names"),
    [
        ({}, set()),
        ({"mixup": 0.2}, {"mix_share"}),
        ({"cutmix": 1.0}, {"mix_share", "mix_box"}),
        ({"mixup": 0.2, "cutmix": 1.0}, {"mix_share", "mix_box"}),
        ({"erasing": 0.5}, {"erase_box"}),
        ({"mixup": 0.2, "erasing": 0.5}, {"mix_share", "erase_box"}),
        ({"running": 0.4, "erasing": 0.5}, {"running_share", "erase_box"}),
    ],
)
def test_only_what_is_needed_is_drawn(chances, names):
    draw = drawn(7, **chances)
    forms = {"mix_share": (np.float32, (7,)), "mix_box": (np.int32, (7, 4))}
    forms |= {"erase_box": forms["mix_box"], "running_share": forms["mix_share"]}
    assert {name: (x.dtype, x.shape) for name, x in draw.items()} == {n: forms[n] for n in names}
    mixing = Mixing(0, **{"mixup": 0, "cutmix": 0, "erasing": 0, **chances}, image_shape=SHAPE)
    assert mixing.active == bool(names)


def test_an_example_draws_the_same_in_any_batch():
    random = np.random.default_rng(0)
    epochs, examples = random.integers(0, 4, 50), random.integers(0, 10**9, 50)
    mixing = Mixing(5, 0.3, 1.0, 0.5, SHAPE, running=0.4)
    whole = mixing.draw(epochs, examples)
    for part in ([0], [49], range(9, 31), random.permutation(50)):
        i = np.array(part)
        for name, rows in mixing.draw(epochs[i], examples[i]).items():
            assert rows.tobytes() == whole[name][i].tobytes()


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (1, 1)])
def test_seed_and_epoch_change_the_draws(seed, epoch):
    """Of 1,000 shares, and of boxes in a 1000 x 1000 image, few come out alike by chance."""
    shape, examples = (1000, 1000, 3), np.arange(1000)
    here = Mixing(0, 1.0, 1.0, 1.0, shape, running=1.0).draw(np.zeros(1000, int), examples)
    there = Mixing(seed, 1.0, 1.0, 1.0, shape, running=1.0).draw(np.full(1000, epoch), examples)
    for name in ("mix_share", "running_share"):
        assert (here[name] == there[name]).sum() < 10
    for name in ("mix_box", "erase_box"):
        boxes = here[name][:, 2] > 0
        assert (here[name] == there[name])[boxes].all(axis=1).sum() < 10


def erased_pixel_by_pixel(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    out = images.copy()
    for image, (top, left, height, width) in zip(out, boxes):
        for row in range(top, top + height):
            for column in range(left, left + width):
                image[row, column] = 0
    return out


def mixed_pixel_by_pixel(images: np.ndarray, share: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    out = np.empty_like(images)
    for i, (top, left, height, width) in enumerate(boxes):
        other = images[(i + 1) % len(images)]
        for row, column in np.ndindex(*images.shape[1:3]):
            inside = top <= row < top + height and left <= column < left + width
            weight = float(share[i]) if height == 0 else 0.0 if inside else 1.0
            pixel = weight * images[i, row, column] + (1 - weight) * other[row, column]
            out[i, row, column] = pixel
    return out


def batch(workers: tuple[int, ...] = (), count: int = 6, seed: int = 0):
    """Images `[..., n, 7, 9, 2]`, shares and boxes: empty, whole, thin, at the edges, within."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(*workers, count, 7, 9, 2))
    share = random.random((*workers, count)).astype(np.float32)
    kinds = [[0, 0, 0, 0], [0, 0, 7, 9], [2, 3, 3, 4], [6, 8, 1, 1], [0, 0, 0, 0], [1, 0, 4, 0]]
    boxes = np.array(kinds, np.int32)[random.permutation(np.arange(count) % len(kinds))]
    return images, share, np.broadcast_to(boxes, (*workers, count, 4)).copy()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_erase_agrees_with_a_loop_over_pixels(dtype, x64):
    images, _, boxes = batch()
    images = images.astype(dtype)
    actual = jax.jit(erase)(images, boxes)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(np.asarray(actual), erased_pixel_by_pixel(images, boxes))


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_mix_agrees_with_a_loop_over_pixels(dtype, count, x64):
    """The share, its rest, two products and a sum are rounded: six half units of the largest."""
    images, share, boxes = batch(count=count)
    images = images.astype(dtype)
    actual = jax.jit(mix)(images, share, boxes)
    assert actual.dtype == dtype
    actual = np.asarray(actual).astype(float)
    expected = mixed_pixel_by_pixel(images.astype(float), share, boxes)
    cut = boxes[:, 2] > 0
    np.testing.assert_array_equal(actual[cut], expected[cut])
    unit = float(jnp.finfo(dtype).eps) * np.abs(images.astype(float)).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * unit)


def test_mix_without_boxes_is_mixup():
    images, share, boxes = batch()
    images = images.astype(np.float32)
    none = np.zeros_like(boxes)
    expected = mixed_pixel_by_pixel(images.astype(float), share, none)
    atol = 4 * np.finfo(np.float32).eps * np.abs(images).max()
    for actual in (jax.jit(mix)(images, share), jax.jit(mix)(images, share, none)):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (1,)])
def test_partner_is_the_next_row_and_of_the_last_the_first(shape):
    rows = np.random.default_rng(0).integers(0, 1000, shape)
    expected = np.stack([rows[(i + 1) % len(rows)] for i in range(len(rows))])
    np.testing.assert_array_equal(partner(jnp.asarray(rows)), expected)


def test_lanes_are_mixed_each_within_itself():
    images, share, boxes = batch((3,))
    images = images.astype(np.float32)
    actual = jax.jit(jax.vmap(lambda x, s, b: mix(erase(x, b), s, b)))(images, share, boxes)
    for lane in range(3):
        x = erased_pixel_by_pixel(images[lane], boxes[lane])
        expected = mixed_pixel_by_pixel(x.astype(float), share[lane], boxes[lane])
        atol = 4 * np.finfo(np.float32).eps * np.abs(x).max()
        np.testing.assert_allclose(actual[lane], expected, rtol=0, atol=atol)


def test_gradient_reaches_the_pixels_that_were_used(x64):
    """Both are linear: <gradient of <w, f>, v> is <w, f(v)>, to the rounding of 756 terms."""
    images, *drawn = batch()
    share, boxes = map(jnp.asarray, drawn)
    weights, direction = np.random.default_rng(1).normal(size=(2, *images.shape))

    def outcome(x):
        return jnp.sum(weights * mix(erase(x, boxes), share, boxes))

    gradient = jax.jit(jax.grad(outcome))(images)
    expected = mixed_pixel_by_pixel(erased_pixel_by_pixel(direction, boxes), share, boxes)
    terms = np.abs(weights * expected).sum() + np.abs(gradient * direction).sum()
    difference = np.sum(gradient * direction) - np.sum(weights * expected)
    assert abs(difference) < images.size * np.finfo(float).eps * terms


def test_boxes_of_smaller_images_lie_within_them_and_in_proportion():
    """To 2 pixels: one for the corner, one for the side. Where rounding lets another size fit, the
    erased box is another, which is rare.
    """
    small, examples = (SHAPE[0] // 4, SHAPE[1] // 4), np.arange(COUNT)
    mixing = Mixing(0, 0.2, 1.0, 1.0, SHAPE)
    there = mixing.of_size(small).draw(examples * 0, examples)
    whole = mixing.draw(examples * 0, examples)
    for name in ("mix_box", "erase_box"):
        top, left, height, width = there[name].T
        assert min(map(np.min, (top, left, height, width))) >= 0
        assert (top + height).max() <= small[0]
        assert (left + width).max() <= small[1]
        drawn_in_both = (there[name][:, 2] > 0) & (whole[name][:, 2] > 0)
        assert drawn_in_both.sum() > COUNT / 4
        difference = np.abs(there[name] - whole[name] / 4)[drawn_in_both]
        assert (difference.max(axis=1) > 2).mean() < (0.05 if name == "erase_box" else TINY)
    # The share is that of the box which is cut, whose sides are whole.
    cut = there["mix_box"][:, 2] > 0
    area = there["mix_box"][:, 2] * there["mix_box"][:, 3] / (small[0] * small[1])
    np.testing.assert_allclose(there["mix_share"][cut], 1 - area[cut], rtol=1e-6)
