"""Files that are cut short, damaged or no images: CorruptError, never another error."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lbsgd.data.images.decode import CorruptError, decode, image_size, read_jpeg_header
from lbsgd.data.images.resize import Box

HEIGHT, WIDTH = 41, 33
BOX = Box(5, 3, 30, 20)


def encoded(kind: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """Waves, so that every block has something in it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack([np.sin(x / 3 + y / 5), np.cos(x / 4 - y / 3), np.sin(x * y / 90)], -1)
    file = io.BytesIO()
    image = Image.fromarray((127 + 120 * waves).astype(np.uint8))
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def with_bytes(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def with_thumbnail(data: bytes) -> bytes:
    """The JPEG with another, whole one in a segment of its own."""
    payload = b"Exif\0\0" + encoded(quality=20)
    return data[:2] + struct.pack(">HH", 0xFFE1, len(payload) + 2) + payload + data[2:]


JPEGS = {
    "420": encoded(),
    "444": encoded(subsampling=0),
    "grey": encoded(mode="L"),
    "progressive": encoded(progressive=True),
    "restart rows": encoded(restart_marker_rows=1),
    "restart blocks": encoded(restart_marker_blocks=2),
    "cmyk": encoded(mode="CMYK"),
    "thumbnail": with_thumbnail(encoded(quality=30)),
    "thumbnail rows": with_thumbnail(encoded(restart_marker_rows=1)),
}
OTHERS = {
    "png": encoded("PNG"),
    "palette": encoded("PNG", "P", transparency=bytes(range(256))),
    "gif": encoded("GIF", "P"),
    "bmp": encoded("BMP"),
    "webp": encoded("WEBP"),
}
FILES = JPEGS | OTHERS
WHOLE = {name: decode(data) for name, data in FILES.items()}


def decoded(data: bytes, box: Box | None = None, shape: tuple[int, int] | None = None):
    """The image, of the shape that it should have, or None for a corrupt one."""
    try:
        size = image_size(data)
        if box and (size[0] < box.top + box.height or size[1] < box.left + box.width):
            box = None
        image = decode(data, box, shape)
    except CorruptError:
        return None
    assert image.dtype == np.uint8
    assert image.shape == (*(shape or (box[2:] if box else size)), 3)
    return image


def survives(data: bytes) -> bool:
    """Whether all of it is still an image; parts may be where all is not."""
    decoded(data, BOX)
    decoded(data, BOX, (7, 5))
    decoded(data, Box(36, 3, 5, 20))
    return decoded(data) is not None


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_cut_short_anywhere_is_corrupt(name):
    """Whatever part of it is wanted, and though its thumbnail has an end."""
    data = JPEGS[name]
    top = Box(0, 0, 1, WIDTH)
    for length in range(len(data)):
        for arguments in ((), (top,), (BOX, (7, 5))):
            with pytest.raises(CorruptError):
                decode(data[:length], *arguments)


@pytest.mark.parametrize("name", JPEGS)
def test_the_size_of_a_jpeg_cut_short_is_right_or_corrupt(name):
    data = JPEGS[name]
    for length in range(len(data)):
        try:
            assert image_size(data[:length]) == (HEIGHT, WIDTH)
        except CorruptError:
            assert length < read_jpeg_header(data).scan


@pytest.mark.parametrize("name", OTHERS)
def test_another_file_cut_short_is_corrupt_unless_its_pixels_are_there(name):
    data = OTHERS[name]
    for length in range(0, len(data), 1 + len(data) // 500):
        image = decoded(data[:length])
        if image is not None:
            assert length > len(data) - 50
            np.testing.assert_array_equal(image, WHOLE[name])


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_with_a_part_lost_is_corrupt(name):
    """A third of its coded data, from the middle."""
    data = JPEGS[name]
    start = read_jpeg_header(data).scan
    third = (len(data) - start) // 3
    with pytest.raises(CorruptError):
        decode(data[: start + third] + data[start + 2 * third :])


@pytest.mark.parametrize("box", [None, Box(0, 0, 20, 9)])
def test_more_data_than_a_row_of_blocks_has_is_damage(box):
    """Of a file with restart markers: decoders skip to the next, having lost their place."""
    data = JPEGS["restart rows"]
    end = data.index(b"\xff\xd0", read_jpeg_header(data).scan)
    with pytest.raises(CorruptError):
        decode(data[:end] + b"\x35" * 40 + data[end:], box)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("instead", [b"", b"\xff\0", b"\xff\xd7"])
def test_a_restart_marker_lost_is_damage(number, instead):
    data = JPEGS["restart rows"]
    at = data.index(bytes([0xFF, 0xD0 + number]), read_jpeg_header(data).scan)
    assert not survives(data[:at] + instead + data[at + 2 :])


@pytest.mark.parametrize("name", ["420", "444", "grey"])
def test_more_data_after_the_last_row_is_none(name):
    """A few files in ImageNet have it, and every decoder takes them."""
    data = JPEGS[name]
    image = decode(data[:-2] + b"\x35" * 40 + data[-2:])
    np.testing.assert_array_equal(image, WHOLE[name])


@pytest.mark.parametrize("offset", [5, 7], ids=["height", "width"])
@pytest.mark.parametrize("name", ["420", "444", "grey", "progressive", "restart rows", "cmyk"])
def test_a_jpeg_larger_than_its_data_is_corrupt(name, offset):
    data = JPEGS[name]
    at = read_jpeg_header(data).frame + offset
    for size in (200, 2000, 0):
        with pytest.raises(CorruptError):
            decode(with_bytes(data, at, size.to_bytes(2)))


def test_a_jpeg_lower_than_its_data_has_the_rows_that_it_says():
    data = JPEGS["444"]
    lower = with_bytes(data, read_jpeg_header(data).frame + 5, (16).to_bytes(2))
    assert image_size(lower) == (16, WIDTH)
    np.testing.assert_array_equal(decode(lower), WHOLE["444"][:16])


def png_of(height: int, width: int) -> bytes:
    """A PNG that says so, with a good checksum."""
    data = OTHERS["png"]
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize("name", ["420", "cmyk", "progressive"])
@pytest.mark.parametrize("reader", [decode, image_size])
def test_a_jpeg_too_large_for_memory_is_corrupt(name, reader):
    data = JPEGS[name]
    sides = struct.pack(">HH", 10001, 10000)
    with pytest.raises(CorruptError, match="10000 x 10001"):
        reader(with_bytes(data, read_jpeg_header(data).frame + 5, sides))


@pytest.mark.parametrize("sides", [(10001, 10000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.parametrize("reader", [decode, image_size])
def test_a_png_too_large_for_memory_is_corrupt(sides, reader):
    with pytest.raises(CorruptError):
        reader(png_of(*sides))


NO_IMAGES = {
    "nothing": b"",
    "a byte": b"\xff",
    "start only": b"\xff\xd8\xff",
    "start and end": b"\xff\xd8\xff\xd9",
    "zeros": bytes(5000),
    "start and zeros": b"\xff\xd8\xff" + bytes(5000),
    "start and ones": b"\xff\xd8" + b"\xff" * 5000,
    "scan only": b"\xff\xd8\xff\xda\0\2\xff\xd9",
    "one scan": b"\xff\xd8\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0" + bytes(40) + b"\xff\xd9",
    "text": b"404 Not Found\n",
    "page": b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>" * 50,
    "png start": b"\x89PNG\r\n\x1a\n",
    "gif start": b"GIF89a",
    "webp start": b"RIFF\x10\0\0\0WEBPVP8 ",
    "bmp start": b"BM" + bytes(60),
    "zip": b"PK\3\4" + bytes(200),
}


@pytest.mark.parametrize("name", NO_IMAGES)
@pytest.mark.parametrize("reader", [decode, image_size])
def test_what_is_no_image_is_corrupt(name, reader):
    with pytest.raises(CorruptError):
        reader(NO_IMAGES[name])


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=300))
def test_random_bytes_are_corrupt(start, data):
    assert not survives(start + data)


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(FILES)), st.floats(0, 1), st.binary(max_size=40), st.booleans())
@example("420", 0.0, b"\xff\xd8\xff\xda\0\2", True)
def test_random_bytes_within_an_image_are_an_image_or_corrupt(name, where, value, instead):
    data = FILES[name]
    at = int(where * len(data))
    survives(data[:at] + value + data[at + len(value) * instead :])


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(FILES)), st.lists(st.floats(0, 0.999), min_size=1, max_size=8))
def test_flipped_bits_are_an_image_or_corrupt(name, places):
    data = bytearray(FILES[name])
    for place in places:
        byte, bit = divmod(int(place * 8 * len(data)), 8)
        data[byte] ^= 1 << bit
    survives(bytes(data))


@pytest.mark.parametrize("name", ["420", "grey", "progressive", "restart rows", "cmyk"])
def test_any_byte_of_the_headers_may_be_wrong(name):
    data = JPEGS[name]
    header = read_jpeg_header(data)
    frame = range(header.frame, header.frame + 19)
    for at in {*frame, *range(header.scan - 14, header.scan)}:
        for value in (0, 1, 2, 3, 4, 16, 17, 0x22, 0x7F, 0x80, 0xD9, 0xDA, 0xFF):
            survives(with_bytes(data, at, bytes([value])))


@pytest.mark.parametrize("sampling", [0x00, 0x01, 0x10, 0x44, 0xFF])
@pytest.mark.parametrize("name", ["420", "restart rows", "progressive"])
def test_a_sampling_that_cannot_be_is_corrupt(name, sampling):
    """Factors are 1 to 4, and no more than 10 blocks make a unit (ITU T.81, B.2.2 and B.2.3)."""
    data = JPEGS[name]
    for component in range(3):
        at = read_jpeg_header(JPEGS[name]).frame + 11 + 3 * component
        data = with_bytes(data, at, bytes([sampling]))
    assert not survives(data)
