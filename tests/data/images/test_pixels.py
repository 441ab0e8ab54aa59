"""Every type of pixel becomes 8 bits by one rule, in files whose bytes are written here."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from lbsgd.data.images.decode import CorruptError, decode, image_size

HEIGHT, WIDTH = 5, 7
RANDOM = np.random.default_rng(0)
# Each value of 16 bits that the rule could round otherwise stands among the first.
CHOSEN = [0, 1, 127, 128, 129, 256, 257, 385, 386, 32767, 32768, 65407, 65534, 65535]
WIDE = np.concatenate([CHOSEN, RANDOM.integers(0, 65536, 35 - len(CHOSEN))]).reshape(5, 7)
COLOUR = np.stack([WIDE, WIDE.T.reshape(5, 7), WIDE[::-1]], -1)


def png(values: np.ndarray, bits: int) -> bytes:
    """A PNG, grey `[h, w]` or with 2 to 4 channels, by its specification."""
    height, width = values.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2] if values.ndim == 3 else 1]
    if bits < 8:
        shifts = np.arange(bits - 1, -1, -1)
        rows = [np.packbits(row[:, None] >> shifts & 1).tobytes() for row in values]
    else:
        rows = [row.astype(f">u{bits // 8}").tobytes() for row in values]

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    coded = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", coded) + chunk(b"IEND", b"")


def netpbm(values: np.ndarray, largest: int, plain: bool = False) -> bytes:
    """A PGM, or a PPM of 3 channels, with a comment in its header."""
    height, width = values.shape[:2]
    kind = (5 if values.ndim == 2 else 6) - 3 * plain
    head = f"P{kind}\n# made by hand\n{width} {height}\n{largest}\n".encode()
    if plain:
        return head + " ".join(map(str, values.ravel())).encode() + b"\n"
    return head + values.astype(">u2" if largest > 255 else "u1").tobytes()


def tiff(
    values: np.ndarray, order: str = "<", photometric: int | None = None, extra: int = 0
) -> bytes:
    """An uncompressed TIFF of the values' own type, by its specification."""
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    after = 8 + 2 + 12 * (10 + bool(extra)) + 4
    per_sample = [(258, values.dtype.itemsize * 8), (339, kind)]
    lists, tags = b"", {}
    for tag, value in per_sample:
        if samples > 2:  # do not fit in the entry
            tags[tag] = (samples, after + len(lists), "I")
            lists += struct.pack(f"{order}{samples}H", *[value] * samples)
        else:
            tags[tag] = (samples, value, "HH")
    if photometric is None:
        photometric = 2 if samples > 2 else 1
    simple = {256: width, 257: height, 259: 1, 262: photometric,
              273: after + len(lists), 277: samples, 278: height, 279: len(data)}  # fmt: skip
    simple |= {338: extra} if extra else {}
    tags |= {tag: (1, value, "I" if tag in (273, 279) else "HH") for tag, value in simple.items()}
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    for tag, (number, value, form) in sorted(tags.items()):
        kind = 3 if form == "HH" or tag in (258, 339) else 4
        head += struct.pack(f"{order}HHI", tag, kind, number)
        head += struct.pack(order + form, *([value] if form == "I" else [value, value]))
    return head + struct.pack(f"{order}I", 0) + lists + data


def by_rule(values: np.ndarray, largest: int) -> np.ndarray:
    """round(255 v / largest) in whole numbers, halves to even as IEEE rounds; RGB."""
    number = values.astype(object) * 255
    whole, rest = number // largest, number % largest
    up = (2 * rest > largest) | ((2 * rest == largest) & (whole % 2 == 1))
    rounded = (whole + up).astype(np.uint8)
    return rounded if rounded.ndim == 3 else np.stack([rounded] * 3, -1)


U2, I2, U4, I4, F4 = (np.dtype(kind) for kind in ("u2", "i2", "u4", "i4", "f4"))
BIG = WIDE.astype(np.uint64) * 65537  # all of 32 bits
GREY = {
    "png": png(WIDE, 16),
    "pgm": netpbm(WIDE, 65535),
    "pgm plain": netpbm(WIDE, 65535, plain=True),
    "tiff": tiff(WIDE.astype(U2)),
    "tiff, big-endian": tiff(WIDE.astype(U2), ">"),
    "tiff, white is 0": tiff(65535 - WIDE.astype(U2), photometric=0),
    "tiff, 32 bits": tiff(BIG.astype(U4)),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_of_16_bits_is_the_same_in_each_form(name):
    np.testing.assert_array_equal(decode(GREY[name]), by_rule(WIDE, 65535))


LOSSLESS = ("tiff_lzw", "tiff_adobe_deflate", None)


@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_grey_of_16_bits_that_pillow_writes(kind, compression):
    file = io.BytesIO()
    options = {"compression": compression} if kind == "TIFF" and compression else {}
    Image.fromarray(WIDE.astype(np.uint16)).save(file, kind, **options)
    np.testing.assert_array_equal(decode(file.getvalue()), by_rule(WIDE, 65535))


DEEP = {
    "png": png(COLOUR, 16),
    "png with alpha": png(np.dstack([COLOUR, WIDE]), 16),
    "ppm": netpbm(COLOUR, 65535),
    "ppm plain": netpbm(COLOUR, 65535, plain=True),
    "tiff": tiff(COLOUR.astype(U2)),
    "tiff, big-endian": tiff(COLOUR.astype(U2), ">"),
    "tiff with alpha": tiff(np.dstack([COLOUR, WIDE]).astype(U2), extra=2),
}


@pytest.mark.parametrize("name", DEEP)
def test_colour_of_16_bits_is_the_same_in_each_form(name):
    np.testing.assert_array_equal(decode(DEEP[name]), by_rule(COLOUR, 65535))


def test_grey_and_alpha_of_16_bits():
    data = png(np.dstack([WIDE, WIDE[::-1]]), 16)
    np.testing.assert_array_equal(decode(data), by_rule(WIDE, 65535))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("values", [WIDE, COLOUR], ids=["pgm", "ppm"])
@pytest.mark.parametrize("largest", [1, 2, 15, 100, 254, 255, 256, 1023, 4095, 65533, 65534])
def test_a_pgm_or_ppm_says_itself_what_is_white(values, largest, plain):
    values = values % (largest + 1)
    values[0, 0] = largest
    decoded = decode(netpbm(values, largest, plain))
    np.testing.assert_array_equal(decoded, by_rule(values, largest))
    assert np.array_equal(np.unique(decoded[0, 0]), [255]) or values.ndim == 3


@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_and_floating_point_tiff(order):
    half = WIDE // 2
    signed = decode(tiff(half.astype(I2), order))
    np.testing.assert_array_equal(signed, by_rule(half, 32767))
    wide = (half * 65537 + 32768).clip(0, 2**31 - 1)
    np.testing.assert_array_equal(decode(tiff(wide.astype(I4), order)), by_rule(wide, 2**31 - 1))
    # Multiples of 1/255 and of 1/510, which float32 does not hold exactly, to within a half.
    levels = np.arange(35).reshape(5, 7) * 7.5
    floats = decode(tiff((levels / 255).astype(F4), order))
    assert np.abs(floats[..., 0] - levels).max() <= 0.5 + 1e-5
    np.testing.assert_array_equal(floats[..., 0][levels % 1 == 0], levels[levels % 1 == 0])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_of_few_bits(bits):
    values = WIDE % 2**bits
    np.testing.assert_array_equal(decode(png(values, bits)), by_rule(values, 2**bits - 1))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_tiff_of_8_bits_is_as_pillow_has_it(mode):
    picture = Image.fromarray(RANDOM.integers(0, 256, (9, 11, 3), dtype=np.uint8)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(file.getvalue())
    with Image.open(io.BytesIO(file.getvalue())) as image:
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def lab() -> bytes:
    file = io.BytesIO()
    Image.new("LAB", (4, 4)).save(file, "TIFF")
    return file.getvalue()


NO_RULE = {
    "lab": (lab(), "LAB"),
    "colour, floats": (tiff(COLOUR.astype(F4)), r"3 samples of 32 bits \(floating point\)"),
    "colour, 32 bits": (tiff(COLOUR.astype(U4)), r"3 samples of 32 bits \(unsigned integers\)"),
    "half floats": (tiff((WIDE / 65535).astype("f2")), r"1 samples of 16 bits \(floating point\)"),
    "64 bits": (tiff(WIDE.astype("u8")), r"1 samples of 64 bits \(unsigned integers\)"),
    "signed, 8 bits": (tiff((WIDE % 100).astype("i1")), r"of 8 bits \(signed integers\)"),
    "cmyk, 16 bits": (tiff(np.dstack([COLOUR, WIDE]).astype(U2), photometric=5), "CMYK.*16 bits"),
}


@pytest.mark.parametrize("name", NO_RULE)
def test_a_type_without_a_rule_is_refused_by_name_from_its_header_on(name):
    data, named = NO_RULE[name]
    for read in (decode, image_size):
        with pytest.raises(CorruptError, match=named) as error:
            read(data)
        assert "save it" in str(error.value)


NO_VALUES = {
    "negative": (tiff((WIDE - 70000).clip(-9, 99).astype(I2)), "values down to -9"),
    "floats to 255": (tiff((WIDE % 256).astype(F4)), "floating-point values from 0 to 255"),
    "not a number": (tiff(np.full((5, 7), np.nan, F4)), "floating-point values from nan to nan"),
    "infinite": (tiff(np.full((5, 7), np.inf, F4)), "floating-point values from inf to inf"),
    "all black": (tiff((WIDE % 256).astype(I4)), "values up to 255 of 2,147,483,647 would all be"),
    "more than white": (netpbm(WIDE, 300), "values up to 65,535, more than the 300 it states"),
    "cut short": (netpbm(WIDE, 4095)[:-1], "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_VALUES)
def test_values_that_the_rule_does_not_fit_are_refused(name):
    data, message = NO_VALUES[name]
    with pytest.raises(CorruptError, match=message):
        decode(data)


@pytest.mark.parametrize("data", [tiff(np.zeros((5, 7), U2)), tiff(np.zeros((5, 7), F4))])
def test_black_is_black(data):
    assert not decode(data).any()
