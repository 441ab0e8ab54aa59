"""Decoding against simplejpeg and Pillow on whole images, brute force, and files that are damaged.

Every image is made here, but for those of ImageNet in a folder beside the repository.
"""

import concurrent.futures
import io
import pathlib
import struct
import tarfile
import warnings

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lbsgd.data.images.decode import decode, image_size
from lbsgd.data.images.resize import Box, resize

SAMPLES = pathlib.Path(__file__).parents[4] / "shared/data/imagenet_samples/imagenet_samples.tar"
HEIGHT, WIDTH = 75, 56


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Waves, edges and noise, uint8 `[h, w, 3]`, so that no two rows or columns are alike."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + y / 9), np.cos(x / 5 - y / 11), np.sign(np.sin(x * y / 50))]
    noise = np.random.default_rng(height).normal(0, 12, (height, width, 3))
    return np.clip(127 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def pillow(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **options)
    return file.getvalue()


def opencv(image: np.ndarray, sampling: str, restart: int = 0) -> bytes:
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
    return cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()


def with_segment(data: bytes, marker: int, payload: bytes) -> bytes:
    """The JPEG with one more segment after its first two bytes."""
    segment = struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return data[:2] + segment + data[2:]


def as_ycck(cmyk: bytes) -> bytes:
    """Adobe's segment says in its last byte how the colours are coded."""
    last = cmyk.index(b"Adobe") + 11
    return cmyk[:last] + b"\2" + cmyk[last + 1 :]


def as_2x2(grey: bytes) -> bytes:
    """With sampling factors that mean nothing where there is one component."""
    at = grey.index(b"\xff\xc0") + 11
    return grey[:at] + b"\x22" + grey[at + 1 :]


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def jpegs(height: int = HEIGHT, width: int = WIDTH) -> dict[str, bytes]:
    """The kinds of JPEG that come up."""
    image = picture(height, width)
    row = {"444": 8, "422": 16, "420": 16, "411": 32, "440": 8}  # width of a coded unit
    files = {f"{s} rows": opencv(image, s, -(-width // w)) for s, w in row.items()}
    files |= {s: simplejpeg.encode_jpeg(image, 85, colorsubsampling=s) for s in row}
    plain = files["420"]
    return files | {
        "grey": pillow(image, mode="L"),
        "grey rows": pillow(image, mode="L", restart_marker_rows=1),
        "grey 2x2": as_2x2(pillow(image, mode="L", restart_marker_rows=1)),
        "progressive": pillow(image, progressive=True),
        "progressive rows": pillow(image, progressive=True, restart_marker_rows=1),
        "restart rows": pillow(image, restart_marker_rows=1),
        "restart two rows": pillow(image, restart_marker_rows=2),
        "restart blocks": pillow(image, restart_marker_blocks=3),
        "optimized": pillow(image, optimize=True, subsampling=0),
        "rgb": pillow(image, keep_rgb=True, subsampling=0),
        "orientation": pillow(image, exif=rotated()),
        "profile": pillow(image, icc_profile=np.random.default_rng(0).bytes(100_000)),
        "comment": with_segment(plain, 0xFE, b"\xff\xd9 and \xff\xda\0\0 \xff\xd0"),
        "thumbnail": with_segment(plain, 0xE1, b"Exif\0\0" + pillow(picture(40, 30))),
        "fill bytes": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "more behind": plain + b"\xff\xd8\xff more \xff\xd0\xff\xda" + bytes(1000),
    }


JPEGS = jpegs()
CMYK = pillow(picture(), mode="CMYK", quality=95)
GREY = np.asarray(Image.fromarray(picture()).convert("L"))
WIDE = picture().astype(np.uint16) * 257  # 16 bits, of which the upper 8 count
# Without the damage that JPEG does, the pixels are those that went in.
LOSSLESS = {
    "png": (pillow(picture(), "PNG"), picture()),
    "png grey": (pillow(GREY, "PNG", "L"), np.dstack([GREY] * 3)),
    "png alpha": (pillow(np.dstack([picture(), GREY]), "PNG", "RGBA"), picture()),
    "png 16 bit": (cv2.imencode(".png", WIDE[..., ::-1])[1].tobytes(), picture()),
    "png grey 16 bit": (cv2.imencode(".png", WIDE[..., 0])[1].tobytes(), picture()[..., [0] * 3]),
    "bmp": (pillow(picture(), "BMP"), picture()),
    "webp": (pillow(picture(), "WEBP", lossless=True), picture()),
}
OTHERS = {
    "cmyk": CMYK,
    "ycck": as_ycck(CMYK),
    "png palette": pillow(picture(), "PNG", "P", transparency=bytes(range(256))),
    "gif": pillow(picture(), "GIF", "P"),
    "webp lossy": pillow(picture(), "WEBP"),
} | {name: data for name, (data, _) in LOSSLESS.items()}
FILES = JPEGS | OTHERS


def whole(data: bytes) -> np.ndarray:
    """All of an image as Pillow has it."""
    with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bytes that say how transparent a palette is
        return np.asarray(image.convert("RGB"))


WHOLE = {name: whole(data) for name, data in FILES.items()}
WHOLE |= {name: image for name, (_, image) in LOSSLESS.items()}


@st.composite
def boxes(draw: st.DrawFn, height: int = HEIGHT, width: int = WIDTH) -> Box:
    """Any box within an image."""
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Box(top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))


def part(image: np.ndarray, box: Box) -> np.ndarray:
    return image[box.top :, box.left :][: box.height, : box.width]


@pytest.mark.parametrize("name", FILES)
def test_all_of_an_image_is_what_went_in_or_other_decoders_give(name):
    image = decode(FILES[name])
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, WHOLE[name])
    if name in JPEGS:
        np.testing.assert_array_equal(image, simplejpeg.decode_jpeg(FILES[name]))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image_size(FILES[name]) == (HEIGHT, WIDTH)


def test_cmyk_is_turned_into_the_colours_that_went_in():
    """Pillow wrote C, M, Y = 255 - R, G, B; quality 95 with 4:2:0 blurs the noise by 8 or so."""
    smooth = cv2.GaussianBlur(picture(), (0, 0), 4)
    difference = decode(pillow(smooth, mode="CMYK", quality=95)).astype(float) - smooth
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=40)
@given(box=boxes())
@example(box=Box(0, 0, HEIGHT, WIDTH))
@example(box=Box(HEIGHT - 1, WIDTH - 1, 1, 1))
@example(box=Box(16, 8, 16, 8))
@example(box=Box(15, 0, 1, WIDTH))
@example(box=Box(0, 0, 16, 1))
def test_a_box_is_what_slicing_the_whole_gives(name, box):
    np.testing.assert_array_equal(decode(FILES[name], box), part(WHOLE[name], box))


def random_box(random: np.random.Generator, height: int, width: int) -> Box:
    top, left = int(random.integers(height)), int(random.integers(width))
    sides = random.integers(1, height - top + 1), random.integers(1, width - left + 1)
    return Box(top, left, *map(int, sides))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (17, 13), (2, 300), (400, 300)])
def test_boxes_of_images_of_other_sizes(height, width):
    random = np.random.default_rng(height)
    for name, data in jpegs(height, width).items():
        image = whole(data)
        np.testing.assert_array_equal(decode(data), image, err_msg=name)
        box = random_box(random, height, width)
        np.testing.assert_array_equal(decode(data, box), part(image, box), err_msg=name)


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_boxes_of_a_large_image(options):
    data = pillow(np.tile(picture(400, 300), (4, 8, 1)), **options)
    image = whole(data)
    assert image_size(data) == (1600, 2400)
    for box in (Box(0, 0, 1600, 2400), Box(1201, 1003, 222, 333), Box(1599, 0, 1, 2400)):
        np.testing.assert_array_equal(decode(data, box), part(image, box))


@pytest.mark.parametrize("blocks", [12, 13, 16])
@settings(deadline=None, max_examples=40)
@given(box=boxes(40, 170))
def test_restart_markers_that_are_as_many_as_rows_but_elsewhere(blocks, box):
    """3 rows of 11 coded units, in 3 intervals of other lengths."""
    data = pillow(picture(40, 170), restart_marker_blocks=blocks)
    np.testing.assert_array_equal(decode(data, box), part(whole(data), box))


@settings(deadline=None, max_examples=100)
@given(boxes(), st.sampled_from(sorted(FILES)), st.integers(1, 90), st.integers(1, 90))
@example(Box(1, 1, 39, 50), "420", 20, 5)
@example(Box(1, 1, 50, 39), "420", 5, 20)
def test_where_a_side_shrinks_by_less_than_two_nothing_is_decoded_smaller(box, name, rows, columns):
    if min(box.height / rows, box.width / columns) >= 2:
        rows = box.height
    expected = resize(part(WHOLE[name], box), (rows, columns))
    np.testing.assert_array_equal(decode(FILES[name], box, (rows, columns)), expected)


# One picture with the same DCT coefficients; of the progressive file no rows can be left out.
OPTIONS = [{}, {"optimize": True}, {"restart_marker_rows": 1}]
ALIKE = [pillow(picture(210, 170), **options) for options in OPTIONS]
ALIKE_WHOLE = pillow(picture(210, 170), progressive=True)


@settings(deadline=None, max_examples=100)
@given(box=boxes(210, 170), height=st.integers(1, 60), width=st.integers(1, 60))
def test_which_rows_were_decoded_is_not_seen_at_any_scale(box, height, width):
    expected = decode(ALIKE_WHOLE, box, (height, width))
    for data in ALIKE:
        np.testing.assert_array_equal(decode(data, box, (height, width)), expected)


DOWN, ACROSS = 0.2618, 0.2657


def slopes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Grey `[h, w, 1]` that rises by nearly, but not in step with, a quarter a pixel."""
    return (8 + DOWN * rows[:, None] + ACROSS * columns)[..., None]


HILL = np.repeat(np.round(slopes(np.arange(416), np.arange(480))), 3, axis=2).astype(np.uint8)
SLOPES = pillow(HILL, quality=100, subsampling=0)


@pytest.mark.parametrize("scale", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("corner", [(0, 0), (96, 160)])
def test_scaled_pixels_are_means_in_their_place(scale, corner):
    """On a slope the mean is the value in the middle.

    Half- and quarter-size DCTs are off by at most 0.28 of the slope (worked out from their
    definition), two roundings by 1 together. In the mean of 400 pixels that comes to nearly
    nothing, but for the eighth by which OpenCV rounds up when it halves; a shift by one pixel of
    the file would be a quarter.
    """
    box = Box(*corner, 20 * scale, 20 * scale)
    difference = decode(SLOPES, box, (20, 20)) - slopes(
        box.top + scale * (np.arange(20) + 0.5) - 0.5,
        box.left + scale * (np.arange(20) + 0.5) - 0.5,
    )
    assert np.abs(difference).max() < 0.28 * (DOWN + ACROSS) + 1 + 0.5
    assert -0.07 < difference.mean() < 0.07 + (0.125 if scale == 16 else 0)


@settings(deadline=None, max_examples=100)
@given(box=boxes(416, 480), height=st.integers(4, 40), width=st.integers(4, 40))
def test_scaled_boxes_begin_and_end_within_a_scaled_pixel(box, height, width):
    """So that none is off by more than its own size in the file."""
    middles = []
    for start, length, pixels in ((box.top, box.height, height), (box.left, box.width, width)):
        middle = (np.arange(pixels) + 0.5) * length / pixels - 0.5
        middles.append(start + np.clip(middle, 0, length - 1))
    difference = decode(SLOPES, box, (height, width)) - slopes(*middles)
    off = DOWN * max(box.height / height, 1) + ACROSS * max(box.width / width, 1)
    assert np.abs(difference).max() < off + 0.28 * (DOWN + ACROSS) + 1.5


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scaled_pictures_are_near_the_mean_over_areas(scale, subsampling):
    """Of waves of 60 pixels or more, whose slope g is at most 6.3 and whose curvature 0.66.

    Reduced DCTs differ from means by 0.28 g and 0.24 of the curvature in each direction; JPEG of
    quality 100, the conversion of colours and rounding add at most 1.5 on average.
    """
    y, x = np.mgrid[:320, :320]
    phases = (x / 10 + y / 30, x / 25 - y / 14, (x + y) / 20)
    image = np.round(127 + 60 * np.sin(np.stack(phases, -1))).astype(np.uint8)
    data = pillow(image, quality=100, subsampling=subsampling)
    size = 320 // scale
    expected = image.reshape(size, scale, size, scale, 3).mean(axis=(1, 3))
    difference = np.abs(decode(data, shape=(size, size)) - expected)
    assert difference.mean() < 0.28 * 60 * (1 / 10 + 1 / 14) * 2 / np.pi + 1.5


@pytest.mark.parametrize("name", ["420", "restart rows", "progressive", "grey", "png", "cmyk"])
@pytest.mark.parametrize("shape", [(40, 30), (60, 50), (11, 9), (4, 4)])
def test_out_is_filled_in_place(name, shape):
    box = Box(9, 11, 40, 30)
    rows = np.full((3, *shape, 3), 77, np.uint8)
    result = decode(FILES[name], box, shape, rows[1])
    assert np.shares_memory(result, rows)
    np.testing.assert_array_equal(rows[1], decode(FILES[name], box, shape))
    assert (rows[[0, 2]] == 77).all()


@pytest.mark.parametrize("name", ["420", "restart rows", "png"])
def test_a_result_outlives_the_next_image(name):
    results = [decode(FILES[name]), decode(FILES[name], Box(9, 11, 40, 30), (5, 5))]
    copies = [result.copy() for result in results]
    decode(pillow(255 - picture(300, 200)))
    for result, copy in zip(results, copies):
        np.testing.assert_array_equal(result, copy)
        result[:] = 0  # it may be written to


def test_threads_do_not_get_in_each_others_way():
    work = [(data, shape) for data in FILES.values() for shape in (None, (20, 30), (3, 5))] * 10
    alone = [decode(data, shape=shape) for data, shape in work]
    filters = list(warnings.filters)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: decode(job[0], shape=job[1]), work))
    for ours, expected in zip(together, alone):
        np.testing.assert_array_equal(ours, expected)
    assert warnings.filters == filters


@pytest.mark.skipif(not SAMPLES.exists(), reason="the ImageNet samples are not in ../shared/data")
def test_images_of_imagenet_and_boxes_of_them():
    random = np.random.default_rng(0)
    with tarfile.open(SAMPLES) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    assert len(files) == 365
    for name, data in files.items():
        image = simplejpeg.decode_jpeg(data)
        assert image_size(data) == image.shape[:2]
        np.testing.assert_array_equal(decode(data), image, err_msg=name)
        box = random_box(random, *image.shape[:2])
        np.testing.assert_array_equal(decode(data, box), part(image, box), err_msg=name)
