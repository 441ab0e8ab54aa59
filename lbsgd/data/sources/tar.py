"""Tars of images, read without unpacking; tars within a tar count as folders."""

import io
import pathlib
import posixpath
import shlex
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from lbsgd.data.sources.files import is_left_out
from lbsgd.data.sources.folder import SCANNERS
from lbsgd.data.sources.listing import Listing, RandomFile, normalize_path
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import printable, short_repr

COMPRESSED = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


def read_tar(path: pathlib.Path) -> Listing:
    """Lists the contents of a tar.

    If it has no images but tars (as ImageNet's has one for each class), each of these counts as a
    folder, named like the tar without ".tar".

    Raises:
      ConfigError: it cannot be read, is compressed or damaged, or must be unpacked first.
    """
    try:
        file, size = RandomFile(path), path.stat().st_size
        start = file.read(0, min(size, 8))
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror or error})") from error
    for magic, command in COMPRESSED.items():
        if start.startswith(magic):
            raise ConfigError(
                f"{path} is compressed; it can be read at random after: "
                f"{command} {shlex.quote(str(path))}"
            )
    listing = Listing(path, file.read)
    inner = _list(listing, _Part(file, 0, size), str(path))
    if not listing.files:
        _list_tars(listing, file, inner)
    else:
        for member in inner:
            listing.takes(normalize_path(member.name))  # records it as left out
    return listing


def _list_tars(listing: Listing, file: RandomFile, tars: list[tarfile.TarInfo]) -> None:
    """Adds the images of tars within a tar."""

    def read(member: tarfile.TarInfo) -> Listing:
        name = normalize_path(member.name)
        inside = Listing(listing.archive, listing.read)
        part = _Part(file, member.offset_data, member.size)
        where = f"{listing.archive}: {printable(name)}"
        _list(inside, part, where, f"{name.removesuffix('.tar')}/")
        return inside

    with ThreadPoolExecutor(SCANNERS, "lbsgd-scan") as pool:
        for inside in pool.map(read, tars):
            listing.merge(inside)


def _list(listing: Listing, part: "_Part", where: str, folder: str = "") -> list[tarfile.TarInfo]:
    """Adds the members of a tar to a listing, and returns those that may be tars themselves.

    Args:
      where: the name of the tar, for messages.
      folder: prefix of the members' paths, for a tar within a tar; "" or ending in "/".
    """
    tars: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(fileobj=part, mode="r:") as tar:
            for member in _members(tar, part):
                path = folder + normalize_path(member.name)
                hidden = is_left_out(posixpath.basename(path))
                if member.isreg() and path.endswith(".tar") and not folder and not hidden:
                    tars.append(member)
                elif listing.takes(path, member.isdir()):
                    if not member.isreg() or member.issparse():
                        raise listing.refuse(path, "a link, a device or sparse")
                    listing.add(path, member.size, part.start + member.offset_data)
        return tars
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read {where} ({error.strerror or error})") from error
    except tarfile.TarError as error:
        raise ConfigError(f"{where} is not a tar, or it is damaged ({error})") from error
    except Exception as error:  # for damaged headers tarfile raises many kinds of errors
        raise ConfigError(
            f"{where} is not a tar, or it is damaged ({short_repr(error)})"
        ) from error


def _members(tar: tarfile.TarFile, part: "_Part") -> Iterator[tarfile.TarInfo]:
    end = 0
    while (member := tar.next()) is not None:
        if member.size < 0 or member.offset < end:  # some versions of tarfile never get past these
            raise tarfile.ReadError("a member starts within another")
        end = member.offset_data + member.size
        if end > part.size and member.isreg():
            raise tarfile.ReadError("unexpected end of data")
        tar.members.clear()  # type: ignore[attr-defined]  # which would keep 1 kB for each
        yield member
    part.seek(tar.offset)
    if any(part.read(tarfile.BLOCKSIZE)):  # tarfile takes any damaged header for the end
        raise tarfile.ReadError("a header is damaged")


class _Part(io.RawIOBase):
    """A part of a file as a file object, with the methods that tarfile needs.

    Attributes:
      start: its offset in the file.
      size: in bytes.
    """

    def __init__(self, file: RandomFile, start: int, size: int) -> None:
        self.start, self.size = start, size
        self._file, self._at = file, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self._at)
        size = left if size < 0 else min(size, left)
        data = self._file.read(self.start + self._at, size)
        self._at += size
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at
