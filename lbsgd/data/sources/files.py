"""Tells which files are images, and tables those that are there, whatever they lie in."""

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

from lbsgd.data.source import MOST_NAMED, named, note_unused
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import noun, printable

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
# Which systems leave everywhere.
COMPANIONS = ("thumbs.db", "desktop.ini", ".ds_store")
SYSTEM_FOLDERS = ("@eadir", "__macosx", "lost+found", "$recycle.bin", "system volume information")
# By the name of the split, the folders that may hold it; the first that is there does.
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "test")}
# What a folder around the classes is called, or one beside them.
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
WRAPPERS = (
    *SPLIT_NAMES,
    *("image", "images", "img", "imgs", "jpegimages", "data", "dataset", "classes"),
    *("annotations", "labels", "masks"),
)


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
      ConfigError: no classes, or a single one; folders around them; one without images, in two
        Unicode forms, or that is not in `classes`.
    """

    def __init__(
        self,
        found: Mapping[str, list[File]],
        classes: tuple[str, ...],
        where: pathlib.Path,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        names, note = sorted(found), note_left_out(left_out or {})
        _check_classes(found, classes, where, note)
        self.classes = classes or tuple(names)
        # macOS and others write the same letters in different bytes.
        label_of = {composed(name): label for label, name in enumerate(self.classes)}
        for name in names:
            if composed(name) not in label_of:
                raise ConfigError(_unknown(name, self.classes, where))
        files = [file for name in names for file in sorted(found[name], key=_folder_and_name)]
        labels = [label_of[composed(name)] for name in names for _ in found[name]]
        self.labels = np.array(labels, np.int32)
        # Bytes of one width take a third of the memory of Python's strings.
        self._paths = np.array([os.fsencode(file.path) for file in files], np.bytes_)
        self.sizes = np.array([file.size for file in files], np.int64)
        self.starts = np.array([file.start for file in files], np.int64)
        digest = hashlib.blake2b(json.dumps(self.classes).encode(), digest_size=16)
        for array in (self._paths, self.sizes):
            digest.update(array.data)
        self.fingerprint = digest.hexdigest()
        self.notes = (*filter(None, (note, note_unused(self.labels, self.classes))),)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The path of a file below the folder of the split."""
        return os.fsdecode(bytes(self._paths[index]))


def is_left_out(name: str) -> bool:
    """Tells whether a file or folder is hidden or of a system, so no image and no class."""
    return name.startswith(".") or name.lower() in (*COMPANIONS, *SYSTEM_FOLDERS)


def kind_left_out(name: str, is_folder: bool = False) -> str:
    """Names what a file or folder that is left out counts as in `Files`.

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


def note_left_out(left_out: Mapping[str, int]) -> str:
    """The line that says what was left out; "" if nothing was."""
    counts = collections.Counter({kind: n for kind, n in left_out.items() if kind and n})
    if not counts:
        return ""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_NAMED]
    parts = [f"{n:,} {printable(kind)}" for kind, n in most]
    if len(counts) > MOST_NAMED:
        parts.append(f"{len(counts) - MOST_NAMED:,} other kinds")
    return f"left out: {', '.join(parts)}; what is read ends in {' '.join(EXTENSIONS)}"


def composed(name: str) -> str:
    """The name in the Unicode form NFC."""
    return unicodedata.normalize("NFC", name)


def _folder_and_name(file: File) -> list[str]:
    return file.path.rsplit("/", 1)


def _check_classes(
    found: Mapping[str, list[File]], classes: tuple[str, ...], where: pathlib.Path, note: str
) -> None:
    """Raises ConfigError where the folders are not those of two classes or more.

    Args:
      classes: of the training split; () where these are to be found out.
      note: what was left out.
    """
    names = sorted(found)
    why = f" ({note})" if note else ""
    if not names:
        raise ConfigError(f"{where} has no folder of images for each class{why}")
    for name in names:
        if not found[name]:
            why = why or f" (what is read ends in {' '.join(EXTENSIONS)})"
            raise ConfigError(
                f"{where}: the folder of class {name!r} has no images{why}; add some or remove it"
            )
    forms = collections.Counter(map(composed, names))
    twice = [name for name in names if forms[composed(name)] > 1]
    if twice:
        raise ConfigError(
            f"{where} has the class {composed(twice[0])!r} twice, in two Unicode forms of the same "
            f"letters ({twice[0]!a} and {twice[1]!a}); move the images into one of them"
        )
    known = set(map(composed, classes))
    wrong = _wrapper(found, known, where)
    if not wrong and len(names) == 1 and not classes:
        wrong = (
            f"{where} has images of a single class, {names[0]!r}, of which nothing can be learned; "
            "it must hold a folder for each class"
        )
    if wrong:
        raise ConfigError(wrong)


def _wrapper(found: Mapping[str, list[File]], known: set[str], where: pathlib.Path) -> str:
    """Says what is wrong where folders lie around those of the classes, or hold none; "" if not.

    Args:
      known: classes of the training split, which no name makes a wrapper.
    """
    folders = [name for name in sorted(found) if composed(name) not in known]
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if len(splits) > 1:  # one alone among others may be a class: CIFAR-100 has one of trains
        folders = splits
    elif len(found) > 1 and not all(name.lower() in WRAPPERS for name in folders):
        return ""
    if not folders:
        return ""
    paths = [file.path.split("/") for name in folders for file in found[name]]
    inner = sorted({path[1] for path in paths if len(path) > 2})
    what = f"{where} has the {noun(len(folders), 'folder')} {named(folders)} in place of classes"
    if len(splits) > 1 and inner:
        return f"{what}; these are splits: take {where} itself as data.dir (or as INPUT of prepare)"
    if any(name.lower() in SPLIT_NAMES for name in inner):
        inside = where / folders[0]
        return f"{what}; the splits are below: take {inside} as data.dir (or as INPUT of prepare)"
    if inner:
        around = " and ".join(printable(str(where / name)) for name in folders[:2])
        return f"{what}, around {named(inner)}; move what is in {around} into {where}"
    if any(name.lower() in WRAPPERS for name in folders):
        return f"{what}, with images in them; sort these into a folder for each class"
    return ""


def _unknown(name: str, classes: tuple[str, ...], where: pathlib.Path) -> str:
    """Says what is wrong with a class that the training split has not."""
    lower = {other.lower().strip(): other for other in classes}
    near = difflib.get_close_matches(name.lower().strip(), lower, 1)
    hint = f", but {lower[near[0]]!r}" if near else ""
    return (
        f"{where} has a class {name!r}, which the training split has not{hint}; rename or remove "
        "its folder"
    )
