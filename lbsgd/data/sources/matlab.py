"""Tables in MATLAB files (version 5), such as the one in ImageNet's devkit.

scipy.io.loadmat can read more kinds of files, but a damaged one crashes the process.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

ORDERS = {b"IM": "<", b"MI": ">"}
START = 128
# Types of elements, by their number in the file.
MATRIX, COMPRESSED = 14, 15
NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
LETTERS = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
# Classes of matrices, by their number in the file.
TABLE, TEXT = 2, 4


def read_table(data: bytes, name: str, fields: tuple[str, ...], most: int) -> list[tuple[Any, ...]]:
    """Reads the rows of a table (an array of structs), with some of its fields.

    Args:
      data: the bytes of the file.
      name: of the variable.
      fields: names of the fields; a value is text, a number, or None for any other type.
      most: limit of the bytes that compressed data may unpack to.

    Raises:
      ValueError: there is no such table, or the file is damaged.
    """
    order = ORDERS.get(data[126:START])
    if not order:
        raise ValueError("not a MATLAB file of version 5")
    for kind, part in _elements(data[START:], order):
        if kind == COMPRESSED:
            unpack = zlib.decompressobj()
            try:
                part = unpack.decompress(part, most)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            if unpack.unconsumed_tail:
                raise ValueError("it unpacks to too much")
            kind, part = next(_elements(part, order), (0, b""))
        if kind == MATRIX:
            what, count, called, rest = _header(part, order)
            if what == TABLE and called == name:
                return _rows(rest, count, fields, order)
    raise ValueError(f"it has no table {name!r}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields the type and the content of consecutive elements."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, padded = at + 8, size if kind == COMPRESSED else size + -size % 8
        if kind >> 16:  # a small element, stored in the place of its size
            kind, size, start, padded = kind & 0xFFFF, kind >> 16, at + 4, 0
        if start + size > len(data) or (start == at + 4 and size > 4):
            raise ValueError("it is cut short")
        yield kind, data[start : start + size]
        at += 8 + padded


def _header(part: bytes, order: str) -> tuple[int, int, str, Iterator[tuple[int, bytes]]]:
    """Parses the header of a matrix: its class, size and name, and the elements that follow."""
    rest = _elements(part, order)
    flags, sizes, name = (content for _, content in _take(rest, 3))
    if len(flags) != 8 or len(sizes) % 4 or not sizes:
        raise ValueError("a matrix without a size")
    count = math.prod(struct.unpack(f"{order}{len(sizes) // 4}I", sizes))
    what = struct.unpack(f"{order}II", flags)[0] & 0xFF
    return what, count, name.decode("latin-1"), rest


def _take(elements: Iterator[tuple[int, bytes]], count: int) -> list[tuple[int, bytes]]:
    taken = [element for _, element in zip(range(count), elements)]
    if len(taken) < count:
        raise ValueError("it is cut short")
    return taken


def _rows(
    rest: Iterator[tuple[int, bytes]], count: int, fields: tuple[str, ...], order: str
) -> list[tuple[Any, ...]]:
    (_, length), (_, names) = _take(rest, 2)
    width = int.from_bytes(length, "little" if order == "<" else "big")
    if not 0 < width <= len(names):
        raise ValueError("a table without fields")
    there = [
        names[at : at + width].split(b"\0")[0].decode("latin-1")
        for at in range(0, len(names), width)
    ]
    if not set(fields) <= set(there):
        raise ValueError(f"its table has no {', '.join(sorted(set(fields) - set(there)))}")
    columns = [there.index(field) for field in fields]
    rows = []
    for _ in range(count):  # ends with the data, whatever count the file states
        cells = _take(rest, len(there))
        rows.append(tuple(_value(*cells[column], order) for column in columns))
    return rows


def _value(kind: int, part: bytes, order: str) -> str | float | None:
    """Returns the text or the number in a matrix; None for any other type."""
    if kind != MATRIX or not part:
        return None
    what, count, _, rest = _header(part, order)
    if what < TEXT:
        return None
    kind, content = next(rest, (0, b""))
    if what == TEXT and kind in LETTERS:
        order = {"<": "-le", ">": "-be"}[order] if kind > 16 else ""
        return content.decode(LETTERS[kind] + order)
    if kind not in NUMBERS or len(content) % np.dtype(NUMBERS[kind]).itemsize:
        return None
    numbers = np.frombuffer(content, f"{order}{NUMBERS[kind]}")
    if what == TEXT:
        if numbers.dtype.kind == "f" or (numbers > 0x10FFFF).any():
            raise ValueError("text that is none")
        return "".join(chr(number) for number in numbers.astype(np.int64).tolist())
    return float(numbers[0]) if len(numbers) == count == 1 else None
