"""Zips of images, read without unpacking.

zipfile reads the listing. The bytes of images are read without it, because all threads would wait
for its one lock.
"""

import operator
import pathlib
import stat
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.sources.listing import Listing, RandomFile, normalize_path
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1
# A member's own header: the lengths of its name and extra fields, after which its data start.
HEADER = struct.Struct("<4s22xHH")


def read_zip(path: pathlib.Path) -> Listing:
    """Lists the contents of a zip.

    Raises:
      ConfigError: it cannot be read, is damaged, or must be unpacked first.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=operator.attrgetter("header_offset"))
        _check_apart(members, archive.start_dir)
        listing = Listing(path, _Images(RandomFile(path), members).read)
        for member in archive.infolist():
            _list(listing, member)
        return listing
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror or error})") from error
    except Exception as error:  # for damaged headers zipfile raises many kinds of errors
        raise ConfigError(f"{path} is not a zip, or it is damaged ({short_repr(error)})") from error


def _check_apart(members: list[zipfile.ZipInfo], end: int) -> None:
    """Raises BadZipFile if members overlap, by which a small zip could pretend to be huge."""
    starts = [member.header_offset for member in members]
    for member, following in zip(members, [*starts[1:], end]):
        if member.header_offset + HEADER.size + member.compress_size > following:
            raise zipfile.BadZipFile("a member starts within another")


def _list(listing: Listing, member: zipfile.ZipInfo) -> None:
    """Adds a member to a listing."""
    path = normalize_path(
        member.filename.replace("\\", "/")
    )  # as some programs for Windows write it
    if not listing.takes(path, member.is_dir()):
        return
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise listing.refuse(path, "a link or a device")
    if member.flag_bits & ENCRYPTED:
        raise listing.refuse(path, "encrypted")
    if member.compress_type not in METHODS:
        raise listing.refuse(path, f"compressed by method {member.compress_type}")
    listing.check_size(path, member.compress_size)
    listing.add(path, member.file_size, member.header_offset)


class _Member(NamedTuple):
    """What the listing of a zip says of a member."""

    compressed: int
    deflated: bool
    checksum: int


class _Images:
    """The images of a zip, by the offsets of their headers.

    Args:
      members: in the order of these offsets.
    """

    def __init__(self, file: RandomFile, members: list[zipfile.ZipInfo]) -> None:
        self._file = file
        # Arrays need a tenth of the memory of a dict.
        self._starts = np.array([member.header_offset for member in members], np.int64)
        self._sizes = np.array([member.compress_size for member in members], np.int64)
        self._deflated = np.array([bool(member.compress_type) for member in members])
        self._checksums = np.array([member.CRC for member in members], np.uint32)

    def _member(self, start: int) -> _Member:
        at = int(np.searchsorted(self._starts, start))
        return _Member(int(self._sizes[at]), bool(self._deflated[at]), int(self._checksums[at]))

    def read(self, start: int, size: int) -> bytes:
        """Reads the bytes of an image; compressed data never expand to more than `size` bytes.

        Raises:
          CorruptError: they cannot be read, or are not what was stored.
        """
        member = self._member(start)
        magic, name, extra = HEADER.unpack(self._file.read(start, HEADER.size))
        data = self._file.read(start + HEADER.size + name + extra, member.compressed)
        if member.deflated:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise CorruptError(f"cannot be inflated ({error})") from error
        if len(data) != size or magic != MAGIC[0] or zlib.crc32(data) != member.checksum:
            raise CorruptError("is not what was put into the zip")
        return data
