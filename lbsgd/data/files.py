"""Which files are images, and a table of those that are there, whatever they lie in."""

import collections
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lbsgd.errors import ConfigError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
# Which systems leave everywhere.
COMPANIONS = ("thumbs.db", "desktop.ini", ".ds_store")
SYSTEM_FOLDERS = ("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information")
# Of the kinds of what was left out, and of classes, that a note names.
MOST_NAMED = 8


class File(NamedTuple):
    """An image file.

    Attributes:
      path: below the folder of the split, with "/"; the first part is the class.
      size: in bytes; -1 for a link that leads nowhere.
      start: where its bytes start in an archive; 0 elsewhere.
    """

    path: str
    size: int
    start: int = 0


class Files:
    """Image files by class, in the order of torchvision's ImageFolder, in little memory.

    Args:
      found: the files of each folder of a class, by its name.
      classes: by label; () for the names of the folders, sorted.
      where: they lie, for messages.
      left_out: how many of each `kind_left_out` there were.

    Attributes:
      labels, starts, sizes: `[N]`.
      fingerprint: of classes, paths and sizes.
      notes: what a person should know of them, a line each.

    Raises:
      ConfigError: no classes, one without images, or one that is not in `classes`.
    """

    def __init__(
        self,
        found: Mapping[str, list[File]],
        classes: tuple[str, ...],
        where: pathlib.Path,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        names = sorted(found)
        if not names:
            raise ConfigError(f"{where} has no folder of images for each class")
        self.classes = classes or tuple(names)
        label_of = {name: label for label, name in enumerate(self.classes)}
        for name in names:
            if not found[name]:
                raise ConfigError(
                    f"{where}: class {name!r} has no images ({' '.join(EXTENSIONS)}); add some or "
                    "remove its folder"
                )
            if name not in label_of:
                raise ConfigError(f"{where} has a class {name!r}, which the training split has not")
        files = [file for name in names for file in sorted(found[name], key=_folder_and_name)]
        labels = [label_of[name] for name in names for _ in found[name]]
        self.labels = np.array(labels, np.int32)
        # Bytes of one width take a third of the memory of Python's strings.
        self._paths = np.array([os.fsencode(file.path) for file in files], np.bytes_)
        self.sizes = np.array([file.size for file in files], np.int64)
        self.starts = np.array([file.start for file in files], np.int64)
        digest = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=16)
        for array in (self._paths, self.sizes):
            digest.update(array.data)
        self.fingerprint = digest.hexdigest()
        self.notes = (*note_left_out(left_out or {}),)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The path of a file below the folder of the split."""
        return os.fsdecode(bytes(self._paths[index]))


def is_left_out(name: str) -> bool:
    """Whether a file or folder of this name is hidden or of a system: no image and no class."""
    return name.startswith(".") or name.lower() in (*COMPANIONS, *SYSTEM_FOLDERS)


def kind_left_out(name: str, is_folder: bool = False) -> str:
    """What a file or folder that is left out counts as in `Files`.

    Returns:
      a folder's name with "/", a file's ending, "hidden", "no ending", or "" for what systems leave
      in every folder, which nobody wants to hear of.
    """
    if is_folder:
        return f"{name}/"
    if name.lower() in COMPANIONS or name.startswith("._"):
        return ""
    if name.startswith("."):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "no ending"


def note_left_out(left_out: Mapping[str, int]) -> list[str]:
    """The line that says what was left out, if anything was."""
    counts = collections.Counter({kind: n for kind, n in left_out.items() if kind and n})
    if not counts:
        return []
    parts = [f"{n:,} {printable(kind)}" for kind, n in counts.most_common(MOST_NAMED)]
    if len(counts) > MOST_NAMED:
        parts.append(f"{len(counts) - MOST_NAMED:,} other kinds")
    return [f"left out: {', '.join(parts)}; what is read ends in {' '.join(EXTENSIONS)}"]


def printable(path: str) -> str:
    """The path with marks in place of what no terminal should be sent, which a name may have."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _folder_and_name(file: File) -> list[str]:
    return file.path.rsplit("/", 1)
