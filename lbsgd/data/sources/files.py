"""Tables of image files by class, in a folder or an archive; which files count as images."""

import collections
import difflib
import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lbsgd.data.source import MOST_NAMED, list_names, note_unused_classes
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import noun, printable

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
# Files and folders that operating systems create everywhere.
COMPANIONS = ("thumbs.db", "desktop.ini", ".ds_store")
SYSTEM_FOLDERS = ("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information")
# The folder of each split: the first of these that exists.
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "test")}
# Names of folders around the classes or beside them, which are no classes themselves.
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
WRAPPERS = (
    *SPLIT_NAMES,
    *("image", "images", "img", "imgs", "jpegimages", "data", "dataset", "classes"),
    *("annotations", "labels", "masks"),
)


class File(NamedTuple):
    """An image file.

    Attributes:
      path: relative to the folder of the split, with "/"; the first part is the class.
      size: in bytes; -1 for a broken link.
      start: offset of its bytes in an archive; 0 for a file in a folder.
    """

    path: str
    size: int
    start: int = 0


class Files:
    """A table of image files by class, in the order of torchvision's ImageFolder.

    It stores a million files in little memory.

    Args:
      found: the files of each class, by the name of its folder.
      classes: class names by label; () for the names of the folders, sorted.
      where: the folder or archive, for messages.
      left_out: how many files of each `kind_left_out` there were.
      whose: what `classes` are of, for messages.

    Attributes:
      labels, starts, sizes: `[N]`.
      fingerprint: a hash of classes, paths and sizes.
      notes: what the user should know of the files, one line each.

    Raises:
      ConfigError: there are no classes, or only one; there are other folders around the classes; a
        class has no images, occurs in two Unicode forms, or is not in `classes`.
    """

    def __init__(
        self,
        found: Mapping[str, list[File]],
        classes: tuple[str, ...],
        where: pathlib.Path,
        left_out: Mapping[str, int] | None = None,
        whose: str = "the training split",
    ) -> None:
        names, note = sorted(found), note_left_out(left_out or {})
        _check_classes(found, classes, where, note)
        self.classes = classes or tuple(names)
        # macOS and other systems encode the same letters differently.
        label_of = {to_nfc(name): label for label, name in enumerate(self.classes)}
        for name in names:
            if to_nfc(name) not in label_of:
                raise ConfigError(_unknown(name, self.classes, where, whose))
        files = [file for name in names for file in sorted(found[name], key=_folder_and_name)]
        labels = [label_of[to_nfc(name)] for name in names for _ in found[name]]
        self.labels = np.array(labels, np.int32)
        # Bytes of fixed width take a third of the memory of Python's strings.
        self._paths = np.array([os.fsencode(file.path) for file in files], np.bytes_)
        self.sizes = np.array([file.size for file in files], np.int64)
        self.starts = np.array([file.start for file in files], np.int64)
        digest = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=16)
        for array in (self._paths, self.sizes):
            digest.update(array.data)
        self.fingerprint = digest.hexdigest()
        self.notes = (*filter(None, (note, note_unused_classes(self.labels, self.classes))),)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Returns the path of a file, relative to the folder of the split."""
        return os.fsdecode(bytes(self._paths[index]))


def is_left_out(name: str) -> bool:
    """Returns whether a file or folder is hidden or the system's: neither an image nor a class."""
    return name.startswith(".") or name.lower() in (*COMPANIONS, *SYSTEM_FOLDERS)


def kind_left_out(name: str, is_folder: bool = False) -> str:
    """Names the kind of a file or folder that is left out, as `Files` counts it.

    Returns:
      the name of a folder with "/", the extension of a file, "hidden", "no ending", or "" for files
      that systems create in every folder, which are not worth a message.
    """
    if is_folder:
        return f"{name}/"
    if name.lower() in COMPANIONS or name.startswith("._"):
        return ""
    if name.startswith("."):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "no ending"


def note_left_out(left_out: Mapping[str, int]) -> str:
    """Describes what was left out; "" if nothing was."""
    counts = collections.Counter({kind: n for kind, n in left_out.items() if kind and n})
    if not counts:
        return ""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_NAMED]
    parts = [f"{n:,} {printable(kind)}" for kind, n in most]
    if len(counts) > MOST_NAMED:
        parts.append(f"{len(counts) - MOST_NAMED:,} other kinds")
    return f"left out: {', '.join(parts)}; what is read ends in {' '.join(EXTENSIONS)}"


def to_nfc(name: str) -> str:
    """Converts a name to the Unicode form NFC."""
    return unicodedata.normalize("NFC", name)


def _folder_and_name(file: File) -> list[str]:
    return file.path.rsplit("/", 1)


def _check_classes(
    found: Mapping[str, list[File]], classes: tuple[str, ...], where: pathlib.Path, note: str
) -> None:
    """Raises ConfigError if the folders are not those of two classes or more.

    Args:
      classes: of the training split; () if this is the training split.
      note: what was left out.
    """
    names = sorted(found)
    why = f" ({note})" if note else ""
    if not names:
        raise ConfigError(f"{where} has no folder of images for each class{why}")
    for name in names:
        if not found[name]:
            read = f"what is read ends in {' '.join(EXTENSIONS)}"
            others = f"; of all folders {note}" if note else ""
            raise ConfigError(
                f"{where}: the folder of class {name!r} has no images ({read}{others}); add some "
                "or remove it"
            )
    forms = collections.Counter(map(to_nfc, names))
    twice = [name for name in names if forms[to_nfc(name)] > 1]
    if twice:
        raise ConfigError(
            f"{where} has the class {to_nfc(twice[0])!r} twice, in two Unicode forms of the same "
            f"letters ({twice[0]!a} and {twice[1]!a}); move the images into one of them"
        )
    known = set(map(to_nfc, classes))
    wrong = _wrapper(found, known, where)
    if not wrong and len(names) == 1 and not classes:
        wrong = (
            f"{where} has images of a single class, {names[0]!r}, from which nothing can be "
            "learned; it must hold a folder for each class"
        )
    if wrong:
        raise ConfigError(wrong)


def _wrapper(found: Mapping[str, list[File]], known: set[str], where: pathlib.Path) -> str:
    """Describes what is wrong if there are other folders in place of those of classes; "" if not.

    Args:
      known: classes of the training split; these are classes whatever their names are.
    """
    folders = [name for name in sorted(found) if to_nfc(name) not in known]
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if len(splits) > 1:  # a single one may be a class: CIFAR-100 has a class of trains
        folders = splits
    elif len(found) > 1 and not all(name.lower() in WRAPPERS for name in folders):
        return ""
    if not folders:
        return ""
    paths = [file.path.split("/") for name in folders for file in found[name]]
    inner = sorted({path[1] for path in paths if len(path) > 2})
    what = (
        f"{where} has the {noun(len(folders), 'folder')} {list_names(folders)} in place of classes"
    )
    if len(splits) > 1 and inner:
        return f"{what}; these are splits: take {where} itself as data.dir (or as INPUT of prepare)"
    if any(name.lower() in SPLIT_NAMES for name in inner):
        inside = where / folders[0]
        return f"{what}; the splits are below: take {inside} as data.dir (or as INPUT of prepare)"
    if inner:
        around = " and ".join(printable(str(where / name)) for name in folders[:2])
        return f"{what}, around {list_names(inner)}; move what is in {around} into {where}"
    if any(name.lower() in WRAPPERS for name in folders):
        return f"{what}, with images in them; sort these into a folder for each class"
    return ""


def _unknown(name: str, classes: tuple[str, ...], where: pathlib.Path, whose: str) -> str:
    """Describes a class that is none of the classes."""
    lower = {other.lower().strip(): other for other in classes}
    near = difflib.get_close_matches(name.lower().strip(), lower, 1)
    hint = f", but {lower[near[0]]!r}" if near else ""
    return (
        f"{where} has a class {name!r}, which {whose} does not have{hint}; rename or remove its "
        "folder"
    )
