"""Tables of MATLAB's files against scipy, which writes and reads them."""

import collections
import io
import random
import zlib

import numpy as np
import pytest
import scipy.io

from lbsgd.data.sources.matlab import read_table

FIELDS = ("ID", "WNID", "num_children")
MOST = 10**6


def saved(compressed: bool = False, before: bool = False, rows: int = 9) -> bytes:
    """A table with numbers of several types, text, and fields that are not asked for."""
    kinds = [np.float64, np.uint16, np.int32, np.int64, np.float32]
    names = ("ID", "words", "children", "WNID", "num_children")
    table = np.zeros((rows, 1), dtype=[(name, "O") for name in names])
    for row in range(rows):
        number = np.array([[row + 1]], kinds[row % len(kinds)])
        children = np.arange(row, dtype=np.float64)[None]
        table[row, 0] = (number, "wörter, " * row, children, f"n{row:08d}", np.array([[row % 3]]))
    stream = io.BytesIO()
    others = {"first": np.eye(4), "text": "abc"} if before else {}
    scipy.io.savemat(stream, others | {"synsets": table}, do_compression=compressed)
    return stream.getvalue()


def by_scipy(data: bytes) -> list[tuple]:
    table = np.atleast_1d(scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
    return [tuple(row[field] for field in FIELDS) for row in table]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("rows", [1, 9, 300])
def test_table_is_that_of_scipy(compressed, before, rows):
    data = saved(compressed, before, rows)
    found = read_table(data, "synsets", FIELDS, MOST)
    assert found == by_scipy(data)
    assert found[-1] == (rows, f"n{rows - 1:08d}", (rows - 1) % 3)


def test_fields_of_other_kinds_are_none():
    found = read_table(saved(rows=3), "synsets", ("children", "words"), MOST)
    assert found == [(None, ""), (0.0, "wörter, "), (None, "wörter, wörter, ")]


def test_file_of_another_byte_order():
    """Which scipy reads and does not write: by hand, of one row."""

    def element(kind: int, content: bytes) -> bytes:
        padded = content + bytes(-len(content) % 8)
        return kind.to_bytes(4, "big") + len(content).to_bytes(4, "big") + padded

    def matrix(what: int, content: bytes, size: int = 1, name: bytes = b"") -> bytes:
        flags, sizes = what.to_bytes(4, "big") + bytes(4), [1, size]
        parts = element(6, flags), element(5, b"".join(n.to_bytes(4, "big") for n in sizes))
        return element(14, b"".join(parts) + element(1, name) + content)

    cells = matrix(6, element(9, np.array([3.0], ">f8").tobytes()))
    cells += matrix(4, element(4, "n00000007".encode("utf-16-be")), 9)
    cells += matrix(6, element(2, b"\0"))
    names = b"".join(field.encode().ljust(32, b"\0") for field in FIELDS)
    length = (4 << 16 | 5).to_bytes(4, "big") + (32).to_bytes(4, "big")  # a small element
    table = matrix(2, length + element(1, names) + cells, 1, b"synsets")
    data = b"MATLAB 5.0".ljust(124) + b"\1\0MI" + table
    assert read_table(data, "synsets", FIELDS, MOST) == by_scipy(data) == [(3.0, "n00000007", 0)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a MATLAB file"),
        (bytes(1000), "not a MATLAB file"),
        (saved()[:127], "not a MATLAB file"),
        (saved()[:128], "no table 'synsets'"),
        (saved()[:-100], "cut short"),
        (saved(compressed=True)[:400], "cut short"),
        (b"".ljust(126) + b"IM" + b"\x0f\0\0\0\x08\0\0\0" + bytes(8), "while decompressing"),
        (saved().replace(b"synsets", b"another"), "no table 'synsets'"),
        (saved().replace(b"WNID\0", b"SDIN\0"), "its table has no WNID"),
    ],
)
def test_file_that_is_none_is_an_error(data, says):
    with pytest.raises(ValueError, match=says):
        read_table(data, "synsets", FIELDS, MOST)


def test_file_that_unpacks_to_more_than_it_may_is_an_error():
    packed = zlib.compress(bytes(10**7))
    size = len(packed).to_bytes(4, "little")
    data = b"".ljust(126) + b"IM" + b"\x0f\0\0\0" + size + packed
    with pytest.raises(ValueError, match="unpacks to too much"):
        read_table(data, "synsets", FIELDS, MOST)


@pytest.mark.parametrize("count", [600, pytest.param(50_000, marks=pytest.mark.long)])
def test_damaged_file_is_read_or_an_error(count):
    """One in some hundred crashes the process in scipy."""
    good, draw = [saved(), saved(compressed=True)], random.Random(0)
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        data = bytearray(draw.choice(good))
        for _ in range(draw.choice([1, 2, 8])):
            data[draw.randrange(126, len(data))] = draw.choice([0, 127, 255, draw.randrange(256)])
        try:
            read_table(bytes(data), "synsets", FIELDS, MOST)
            seen["read"] += 1
        except ValueError:
            seen["an error"] += 1
    assert min(seen["read"], seen["an error"]) > 50
