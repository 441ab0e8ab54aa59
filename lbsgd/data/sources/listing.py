"""Listing of an archive: its images, what is left out, and how the bytes of an image are read."""

import collections
import os
import pathlib
import posixpath
import weakref
from collections.abc import Callable

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.sources.files import EXTENSIONS, File, Files, is_left_out, kind_left_out
from lbsgd.data.sources.folder import MOST_BYTES
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import printable

OUTSIDE = "images in no folder of a class"


class Listing:
    """The members of an archive. If two have the same name, the later counts, as in unpacking.

    Args:
      archive: its path, for messages.
      read: returns the bytes of an image, given its offset and its size.

    Attributes:
      files: the images, by path.
    """

    def __init__(self, archive: pathlib.Path, read: Callable[[int, int], bytes]) -> None:
        self.archive, self.read = archive, read
        self.files: dict[str, File] = {}
        self._left_out: dict[str, str] = {}
        self._folders: set[str] = set()

    def takes(self, path: str, is_folder: bool = False) -> bool:
        """Returns whether a member is an image to be used; records folders and what is left out."""
        if path in ("", "."):
            return False
        parts = path.split("/")
        for depth, part in enumerate(parts):
            inner = depth + 1 < len(parts)
            if is_left_out(part):
                below = "/".join(parts[: depth + 1])
                self._left_out[below] = kind_left_out(part, inner or is_folder)
                return False
        self._folders.add(path if is_folder else posixpath.dirname(path))
        if is_folder:
            return False
        if not path.lower().endswith(EXTENSIONS):
            self._left_out[path] = kind_left_out(parts[-1])
            return False
        return True

    def add(self, path: str, size: int, start: int) -> None:
        """Adds an image.

        Raises:
          ConfigError: it is too large for an image.
        """
        self.check_size(path, size)
        self.files[path] = File(path, size, start)

    def check_size(self, path: str, size: int) -> None:
        """Raises ConfigError if reading a member would take more memory than any image."""
        if size > MOST_BYTES:
            raise ConfigError(f"{self.archive}: {printable(path)} has {size:,} bytes; leave it out")

    def merge(self, other: "Listing") -> None:
        """Adds the members of an archive within this archive."""
        self.files |= other.files
        self._left_out |= other._left_out
        self._folders |= other._folders

    def refuse(self, path: str, what: str) -> ConfigError:
        """Returns the error for a member that cannot be read without unpacking."""
        return ConfigError(
            f"{self.archive}: {printable(path)} is {what}; unpack the archive and use the folder"
        )

    def below(self, folder: str, classes: tuple[str, ...] = ()) -> Files:
        """Collects the images below a folder, by class.

        Args:
          folder: the folder around those of the classes; "" or ending in "/".
          classes: class names by label, if they are not those in the archive.

        Raises:
          ConfigError: as in `Files`.
        """
        left_out = collections.Counter(
            kind for path, kind in self._left_out.items() if path.startswith(folder)
        )
        found: dict[str, list[File]] = {}
        for path in self._folders:
            if path.startswith(folder) and len(path) > len(folder):
                found[path.removeprefix(folder).split("/")[0]] = []
        for file in self.files.values():
            if file.path.startswith(folder):
                path = file.path.removeprefix(folder)
                name, slash, _ = path.partition("/")
                if slash:
                    found[name].append(file._replace(path=path))
                else:
                    left_out[OUTSIDE] += 1
        return Files(found, classes, self.archive, left_out)


def normalize_path(name: str) -> str:
    """Normalizes the path of a member, so that it cannot lead out of the archive."""
    return posixpath.normpath(name).lstrip("/")


class RandomFile:
    """A file that several threads may read at any offset.

    Raises:
      OSError: it cannot be opened.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, size: int) -> bytes:
        """Reads `size` bytes at offset `start`.

        Raises:
          CorruptError: the file is shorter, or cannot be read.
        """
        try:
            data = os.pread(
                self._descriptor, size, start
            )  # does not move the offset that threads share
        except OSError as error:
            raise CorruptError(f"cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise CorruptError("the archive has been cut short")
        return data
