"""Views of images: where their boxes lie, and which pixels are seen."""

import collections
import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.images.resize import Box
from lbsgd.data.order import random_below
from lbsgd.data.views import CentreCrop, InceptionCrop, RandomCrop, Whole
from lbsgd.system.errors import ConfigError

TINY = 1e-6  # the chance that a good generator fails a statistical test
COUNT = 20_000
# Height and width: usual ones, ImageNet's smallest and a narrow one, and one where no try fits.
SIZES = [(375, 500), (500, 375), (224, 224), (56, 75), (200, 600), (600, 200), (100, 2400)]


def torchvision_box(random: np.random.Generator, height: int, width: int) -> Box:
    """`RandomResizedCrop.get_params` with its defaults, by numpy's random numbers."""
    for _ in range(10):
        target = height * width * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = random.integers(0, height - h + 1), random.integers(0, width - w + 1)
            return Box(int(top), int(left), h, w)
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def our_boxes(height: int, width: int, count: int = COUNT, seed: int = 0, epoch: int = 0):
    """Boxes `[count, 4]` of examples 0..count-1."""
    view = InceptionCrop((8, 8, 3), seed)
    draws = view.draw(np.full(count, epoch), np.arange(count))
    return np.array([view.box(height, width, draw) for draw in draws])


def statistics(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """Of boxes `[N, 4]`, with what shows whether the sides depend on one another as they should."""
    top, left, h, w = boxes.T.astype(float)
    return {
        "area": h * w / (height * width),
        "aspect": w / h,
        "top": top / np.maximum(height - h, 1),
        "left": left / np.maximum(width - w, 1),
        "height": h,
        "width": w,
        "bottom": top + h,
        "right": left + w,
        "across": top / np.maximum(height - h, 1) - left / np.maximum(width - w, 1),
        "area by aspect": h * w / (height * width) + w / h,
    }


def ramps(height: int, width: int, row: int, column: int, steepness: int) -> np.ndarray:
    """`steepness` grey levels a row in channels 0 and 2, a column in channel 1; 128 at the given.

    Around these a pixel holds its own coordinate.
    """
    rows, columns = np.indices((height, width))
    image = 128 + steepness * np.stack([rows - row, columns - column, rows - row], axis=-1)
    return np.clip(image, 0, 255).astype(np.uint8)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def seen(view, image: np.ndarray | bytes, example: int = 0) -> np.ndarray:
    out = np.full(view.shape, 77, np.uint8)
    view(image, view.draw(np.array([1]), np.array([example]))[0], out)
    return out


def coordinates(start: float, size: float, count: int) -> np.ndarray:
    """Of the middles of `count` equal parts of start..start+size, a pixel's middle being at .5.

    There is nothing beyond the middles of the first and the last pixel.
    """
    middles = start + size * (np.arange(count) + 0.5) / count - 0.5
    return np.clip(middles, start, start + size - 1)


def assert_sees(view, image_size: tuple[int, int], box, tolerance: float, encoded: bool) -> None:
    """That the view resizes the box (top, left, height, width), which may lie between pixels.

    The image is a steep ramp of grey across some row and column of the box: where a view of it is
    far from black and white it tells which coordinate it sees. Besides `tolerance` (pixels) it may
    be wrong by 1 + 2^-6 grey levels (OpenCV drops up to 1/2 + 2^-7 and rounds then) and by 1/8 of a
    pixel (of the mean over an area that ends within a pixel).
    """
    steepness = 8
    tolerance += (1 + 2**-6) / steepness + 1 / 8
    for part in (0.0, 0.3, 0.5, 0.8, 1.0):
        at = [round(box[axis] + part * (box[axis + 2] - 1)) for axis in (0, 1)]
        image = ramps(*image_size, *at, steepness)
        found = seen(view, as_png(image) if encoded else image)
        for axis in (0, 1):
            expected = coordinates(box[axis], box[axis + 2], view.shape[axis])
            levels = np.moveaxis(found[..., axis].astype(float), axis, -1)
            inside = (levels > 32) & (levels < 224)  # four pixels from the ends of the ramp
            assert inside.any()
            error = at[axis] + (levels - 128) / steepness - expected
            assert np.abs(error[inside]).max() <= tolerance


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_have_torchvisions_distribution(height, width):
    random = np.random.default_rng(height)
    theirs = np.array([torchvision_box(random, height, width) for _ in range(COUNT)])
    theirs = statistics(theirs, height, width)
    for name, ours in statistics(our_boxes(height, width), height, width).items():
        assert stats.ks_2samp(ours, theirs[name], method="asymp").pvalue > TINY, name


def test_area_and_aspect_are_uniform_where_all_boxes_fit():
    """Area up to a quarter: every try fits a square, so nothing is selected or rounded away."""
    view = InceptionCrop((8, 8, 3), seed=3, area=(0.1, 0.25), aspect=(1 / 2, 3.0))
    draws = view.draw(np.zeros(COUNT, int), np.arange(COUNT))
    _, _, h, w = np.array([view.box(10**6, 10**6, draw) for draw in draws]).T
    area = h * w / 1e12
    assert stats.kstest(area, stats.uniform(0.1, 0.15).cdf).pvalue > TINY
    low, high = math.log(1 / 2), math.log(3.0)
    assert stats.kstest(np.log(w / h), stats.uniform(low, high - low).cdf).pvalue > TINY


@pytest.mark.parametrize(("height", "width"), [*SIZES, (1, 1), (1, 2), (2, 1), (3, 500), (7, 5)])
def test_boxes_lie_within_the_image(height, width):
    top, left, h, w = our_boxes(height, width, count=2000).T
    assert min(h.min(), w.min()) >= 1
    assert min(top.min(), left.min()) >= 0
    assert (top + h).max() <= height
    assert (left + w).max() <= width


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (100, 2400, Box(0, 1133, 100, 133)),  # 133 = round(100 * 4/3)
        (2400, 100, Box(1133, 0, 133, 100)),
        (375, 500, Box(0, 0, 375, 500)),
        (374, 500, Box(0, 0, 374, 499)),
        (56, 75, Box(0, 0, 56, 75)),
        (300, 300, Box(0, 0, 300, 300)),
    ],
)
def test_where_no_try_fits_the_middle_is_taken(height, width, box):
    """Ten tries of 1.1 times the area, which fit in nothing."""
    draw = np.array([1.1] * 10 + [0.0] * 10 + [0.3, 0.7])
    assert InceptionCrop((8, 8, 3), 0).box(height, width, draw) == box


def test_of_an_extreme_image_the_middle_is_taken_always():
    assert (our_boxes(100, 2400, count=200) == Box(0, 1133, 100, 133)).all()


@pytest.mark.parametrize("fitting", range(10))
def test_the_first_try_that_fits_is_taken(fitting):
    areas = np.full(10, 1.1)
    areas[fitting:] = np.linspace(0.25, 0.05, 10 - fitting)
    draw = np.concatenate([areas, np.zeros(10), [0.0, 0.5]])
    # A quarter of 200 x 100 as a square, at the top, in the middle of the 30 columns left over.
    side = round(math.sqrt(0.25 * 200 * 100))
    box = InceptionCrop((8, 8, 3), 0).box(200, 100, draw)
    assert box == Box(0, (100 - side + 1) // 2, side, side)


def test_a_box_is_the_same_in_any_batch():
    view = InceptionCrop((8, 8, 3), seed=3)
    random = np.random.default_rng(0)
    epochs, examples = random.integers(0, 4, 60), random.integers(0, 10**6, 60)
    whole = view.draw(epochs, examples)
    for part in ([0], [59], range(7, 19), random.permutation(60)):
        i = np.array(part)
        np.testing.assert_array_equal(view.draw(epochs[i], examples[i]), whole[i])


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1), (1, 1)])
def test_seeds_and_epochs_have_boxes_of_their_own(seed, epoch):
    """Independent ones: the areas' ranks have correlation 0, up to 1 / sqrt(N) by chance."""
    here = statistics(our_boxes(400, 400, 5000), 400, 400)
    there = statistics(our_boxes(400, 400, 5000, seed, epoch), 400, 400)
    for name in ("area", "aspect", "top", "left"):
        assert stats.spearmanr(here[name], there[name]).pvalue > TINY


def test_the_flip_does_not_depend_on_the_box():
    examples = np.arange(COUNT)
    flipped = random_below(2, 0, "flip", np.zeros_like(examples), examples) == 1
    for name, values in statistics(our_boxes(375, 500), 375, 500).items():
        assert stats.ks_2samp(values[flipped], values[~flipped]).pvalue > TINY, name


@pytest.mark.parametrize("size", [(375, 500), (600, 200), (56, 75), (1000, 900)])
@pytest.mark.parametrize("encoded", [False, True])
def test_the_box_is_what_is_seen(size, encoded):
    for seed in range(1 if encoded else 10):
        view = InceptionCrop((128, 144, 3), seed)
        box = view.box(*size, view.draw(np.array([1]), np.array([0]))[0])
        assert_sees(view, size, box, 0.0, encoded)


@pytest.mark.parametrize(
    ("height", "width", "resized", "corner"),
    [
        (375, 500, (256, 341), (16, 58)),  # 341.3 is cut off, 58.5 goes to the even one
        (500, 375, (341, 256), (58, 16)),
        (56, 75, (256, 342), (16, 59)),
        (224, 224, (256, 256), (16, 16)),
        (300, 353, (256, 301), (16, 38)),  # 38.5
        (1600, 2400, (256, 384), (16, 80)),
        (1, 1, (256, 256), (16, 16)),
        (1, 100, (256, 25600), (16, 12688)),
    ],
)
def test_the_centre_is_that_of_the_resized_image(height, width, resized, corner):
    """Worked out by hand: torchvision's Resize(256), then CenterCrop(224)."""
    window = CentreCrop((224, 224, 3)).window(height, width)
    down, across = height / resized[0], width / resized[1]
    expected = (corner[0] * down, corner[1] * across, 224 * down, 224 * across)
    np.testing.assert_allclose(window[1:], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "view",
    [InceptionCrop((9, 9, 3), 0), RandomCrop((9, 9, 3), 0, 11), CentreCrop((9, 9, 3), 9)],
)
def test_one_channel_is_seen_as_the_first_of_three(view):
    image = noise(28, 30)
    one = dataclasses.replace(view, shape=(9, 9, 1))
    np.testing.assert_array_equal(seen(one, image[..., :1]), seen(view, image)[..., :1])


# --- random crops of images whose short side is resized ----------------------------------------


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_a_random_crop_of_a_stored_image_is_a_part_of_it(encoded, antialias):
    """Bit by bit, for an image that has the short side; each place is as likely."""
    view = RandomCrop((5, 4, 3), 7, 6, antialias)
    image = noise(6, 9)
    parts = {image[t : t + 5, x : x + 4].tobytes(): (t, x) for t in range(2) for x in range(6)}
    count = 300 if encoded else 6000
    draws = view.draw(np.full(count, 3), np.arange(count))
    found = collections.Counter()
    for draw in draws:
        out = np.empty(view.shape, np.uint8)
        view(as_png(image) if encoded else image, draw, out)
        found[parts[out.tobytes()]] += 1
    assert len(parts) == 12
    counts = [found[place] for place in parts.values()]
    assert stats.chisquare(counts).pvalue > TINY


@pytest.mark.parametrize(
    ("size", "resized"),
    [((12, 18), (6, 9)), ((3, 5), (6, 10)), ((17, 12), (8, 6)), ((1, 1), (6, 6))],
)
def test_a_random_crop_of_another_size_is_of_the_resized_image(size, resized):
    """Wherever it lies it has the crop's share of both sides, to a pixel by the fast rule."""
    exact, whole = (RandomCrop((5, 4, 3), 0, 6, antialias) for antialias in (True, False))
    scale = [before / after for before, after in zip(size, resized)]
    corners = set()
    for draw in exact.draw(np.zeros(400, int), np.arange(400)):
        window, box = exact.region(*size, draw), whole.region(*size, draw)
        corner = window.top / scale[0], window.left / scale[1]
        np.testing.assert_allclose(corner, np.rint(corner), atol=1e-9)
        corners.add(tuple(np.rint(corner).astype(int).tolist()))
        np.testing.assert_allclose(window[3:], (5 * scale[0], 4 * scale[1]), rtol=1e-12)
        assert np.abs(np.subtract(box, window[1:])).max() <= 1
        assert min(box) >= 0
        assert min(box.height, box.width) >= 1
        assert box.top + box.height <= size[0]
        assert box.left + box.width <= size[1]
    assert corners == set(np.ndindex(resized[0] - 4, resized[1] - 3))


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1)])
def test_seeds_and_epochs_have_random_crops_of_their_own(seed, epoch):
    here, there = (
        RandomCrop((5, 4, 3), s).draw(np.full(1000, e), np.arange(1000))
        for s, e in ((0, 0), (seed, epoch))
    )
    for one, other in zip(here.T, there.T):
        assert stats.spearmanr(one, other).pvalue > TINY


def test_whole_images_are_as_they_are():
    image = noise(8, 6)
    view = Whole((8, 6, 3))
    np.testing.assert_array_equal(seen(view, image), image)
    np.testing.assert_array_equal(seen(view, as_png(image)), image)


@pytest.mark.parametrize("encoded", [False, True])
def test_whole_images_that_differ_in_size_are_an_error(encoded):
    image = noise(6, 8)
    says = r"an image is 6x8x3, the first one 8x6x3; data\.crop='inception'"
    with pytest.raises(ConfigError, match=says):
        seen(Whole((8, 6, 3)), as_png(image) if encoded else image)


@pytest.mark.parametrize(
    "view",
    [
        Whole((8, 6, 3)),
        InceptionCrop((8, 6, 3), 0),
        RandomCrop((8, 6, 3), 0),
        CentreCrop((8, 6, 3)),
    ],
)
@pytest.mark.parametrize("damaged", [b"", b"no image", as_png(noise(8, 6))[:60]])
def test_what_cannot_be_decoded_is_corrupt(view, damaged):
    with pytest.raises(CorruptError):
        seen(view, damaged)
