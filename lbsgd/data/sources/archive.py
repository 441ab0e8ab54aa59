"""Archives of image files, a folder for each class in a tar or a zip, read without unpacking."""

import itertools
import pathlib
import posixpath

from lbsgd.data.source import Example, first_image_shape
from lbsgd.data.sources.files import SPLIT_FOLDERS, Files
from lbsgd.data.sources.listing import Listing
from lbsgd.data.sources.tar import read_tar
from lbsgd.data.sources.zip import MAGIC, read_zip
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import printable


class ArchiveSource:
    """Image files in an archive.

    Args:
      listing: of the archive.
      files: the files of this source, by class.
      folder: the folder that their paths are relative to, for their names; "" or ending in "/".
    """

    def __init__(self, listing: Listing, files: Files, folder: str = "") -> None:
        self._files, self._read, self._folder = files, listing.read, folder
        self.classes, self.fingerprint, self.notes = files.classes, files.fingerprint, files.notes
        self.labels = files.labels
        self.image_shape = first_image_shape(self)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        start, size = int(self._files.starts[index]), int(self._files.sizes[index])
        return Example(self._read(start, size), int(self._files.labels[index]))

    def name(self, index: int) -> str:
        return printable(self._folder + self._files.path(index))


def read_archive(path: pathlib.Path) -> Listing:
    """Lists the contents of a tar or a zip.

    Raises:
      ConfigError: it is neither, cannot be read, or has members that must be unpacked first.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) in MAGIC
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror or error})") from error
    return read_zip(path) if is_zip else read_tar(path)


def archive_splits(
    path: pathlib.Path, alone: str = "train", classes: tuple[str, ...] = ()
) -> dict[str, ArchiveSource]:
    """Opens the splits "train" and "validation" that an archive has.

    They are `train/CLASS/` and `val/CLASS/`; folders around both of them are ignored.

    Args:
      alone: the split to use for an archive that has `CLASS/` only.
      classes: of the validation split if the training split is elsewhere; () for those in the
        archive.

    Raises:
      ConfigError: it cannot be read, or has no such folders.
    """
    listing = read_archive(path)
    folders_of_images = {posixpath.dirname(path) for path in listing.files}
    around = _around(folders_of_images)
    tops = {path.split("/")[0] for path in _inside(folders_of_images, around) if "/" in path}
    named = {
        split: next((f"{around}{name}/" for name in names if name in tops), "")
        for split, names in SPLIT_FOLDERS.items()
    }
    folders = {split: below for split, below in named.items() if below} or {alone: around}
    found: dict[str, ArchiveSource] = {}
    for split, below in folders.items():
        known = found["train"].classes if found else classes
        files = listing.below(below, () if split == "train" else known)
        found[split] = ArchiveSource(listing, files, below)
    return found


def _inside(folders: set[str], around: str) -> list[str]:
    """Returns the folders below `around`, relative to it."""
    return [path.removeprefix(around) for path in folders if path.startswith(around) and path]


def _around(folders: set[str]) -> str:
    """Finds the folders around all images that are neither splits nor classes."""
    splits = set(itertools.chain(*SPLIT_FOLDERS.values()))
    around = ""
    while True:
        inside = _inside(folders, around)
        tops = {path.split("/")[0] for path in inside}
        if len(tops) != 1 or tops <= splits or not any("/" in path for path in inside):
            return around
        around += f"{tops.pop()}/"
