"""What an archive holds: its images and what is left out, by path, and how their bytes are read."""

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
    """The members of an archive; of two of one name the later counts, as where it is unpacked.

    Args:
      archive: for messages.
      read: the bytes of an image, given where it starts and its size.

    Attributes:
      files: the images, by path.
    """

    def __init__(self, archive: pathlib.Path, read: Callable[[int, int], bytes]) -> None:
        self.archive, self.read = archive, read
        self.files: dict[str, File] = {}
        self._left_out: dict[str, str] = {}
        self._folders: set[str] = set()

    def takes(self, path: str, is_folder: bool = False) -> bool:
        """Whether a member is an image that counts; notes what is left out, and the folders."""
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
          ConfigError: it is larger than any image.
        """
        self.check_size(path, size)
        self.files[path] = File(path, size, start)

    def check_size(self, path: str, size: int) -> None:
        """Raises ConfigError where reading a member would take more memory than any image."""
        if size > MOST_BYTES:
            raise ConfigError(f"{self.archive}: {printable(path)} has {size:,} bytes; leave it out")

    def merge(self, other: "Listing") -> None:
        """Adds the members of an archive that lies within this one."""
        self.files |= other.files
        self._left_out |= other._left_out
        self._folders |= other._folders

    def refuse(self, path: str, what: str) -> ConfigError:
        """The error of a member that cannot be read where it lies."""
        return ConfigError(
            f"{self.archive}: {printable(path)} is {what}; unpack the archive and use the folder"
        )

    def below(self, folder: str, classes: tuple[str, ...] = ()) -> Files:
        """The images by class.

        Args:
          folder: that of the folders of the classes; "" or with "/" at its end.
          classes: by label, where they are not to be those in the archive.

        Raises:
          ConfigError: as `Files` does.
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


def normal(name: str) -> str:
    """The path of a member within its archive, wherever its name would lead."""
    return posixpath.normpath(name).lstrip("/")


class RandomFile:
    """A file that threads read at any place.

    Raises:
      OSError: it cannot be opened.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, start: int, size: int) -> bytes:
        """The bytes from `start` on.

        Raises:
          CorruptError: they are not there.
        """
        try:
            data = os.pread(self._descriptor, size, start)  # moves no pointer that threads share
        except OSError as error:
            raise CorruptError(f"cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise CorruptError("the archive has been cut short")
        return data
