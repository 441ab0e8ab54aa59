"""Data sets in memory: your own arrays in npz files, and scikit-learn's digits."""

import hashlib
import importlib.util
import math
import pathlib
import zipfile

import ml_collections
import numpy as np

from lbsgd.data.source import CHANNELS, Example, Splits, note_unused_classes, numbered_classes
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import expand_home
from lbsgd.system.limits import memory_limit
from lbsgd.system.text import short_repr

# Every label below the highest one is a class, whether it occurs or not.
MOST_CLASSES = 10**6


class ArraySource:
    """Examples held in memory: images uint8 `[N, h, w, c]`, labels `[N]`."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: tuple[str, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        self.images, self.labels, self.classes, self.notes = images, labels, classes, notes
        height, width, channels = images.shape[1:]
        self.image_shape = (height, width, channels)
        digest = hashlib.blake2b(digest_size=16)
        for array in (images, labels.astype(np.int64)):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], int(self.labels[index]))

    def name(self, index: int) -> str:
        return f"image {index}"

    def key(self, index: int) -> bytes:
        """Returns the name of an example within the set: its number."""
        return str(index).encode()


def digits(config: ml_collections.ConfigDict) -> Splits:
    """Loads scikit-learn's 1,797 handwritten digits, 8x8 grey; every fifth is for validation."""
    # Its file by itself, for scikit-learn takes seconds to import.
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    images = np.round(table[:, :-1] * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(int)
    held_out = np.arange(len(images)) % 5 == 0
    return Splits(
        ArraySource(images[~held_out], labels[~held_out], numbered_classes(10)),
        ArraySource(images[held_out], labels[held_out], numbered_classes(10)),
    )


def npz(config: ml_collections.ConfigDict) -> Splits:
    """Loads your own arrays: `train.npz` and `validation.npz` in data.dir.

    Each holds `images`, uint8 `[N, h, w, c]` or `[N, h, w]`, and `labels`, whole numbers from 0 on
    `[N]` or `[N, 1]`, or one-hot `[N, C]`.
    """
    folder = expand_home(config.dir)
    train = npz_source(folder / "train.npz")
    validation = npz_source(folder / "validation.npz", train.classes)
    unknown = np.setdiff1d(validation.labels, train.labels)
    if unknown.size:
        raise ConfigError(
            f"{config.dir}: validation.npz has the label {unknown[0]}, which train.npz never has; "
            "number the classes of both alike"
        )
    if train.image_shape != validation.image_shape:
        raise ConfigError(f"{config.dir}: images of train.npz and validation.npz differ in shape")
    return Splits(train, validation)


def whole_npz(config: ml_collections.ConfigDict) -> ArraySource:
    """Loads `train.npz` of data.dir, to hold out a part of it.

    Raises:
      ConfigError: as in `npz_source`, or there is a `validation.npz` too.
    """
    folder = expand_home(config.dir)
    if (folder / "validation.npz").exists():
        raise ConfigError(
            f"data.validation_fraction={config.validation_fraction}, but "
            f"{folder / 'validation.npz'} is there; set it to 0, or remove that"
        )
    return npz_source(folder / "train.npz")


def npz_source(path: pathlib.Path, classes: tuple[str, ...] = ()) -> ArraySource:
    """Loads the examples of an npz file.

    Args:
      classes: those of the training split, if this is the validation split.

    Raises:
      ConfigError: as in `read_npz`; or there is only one class to train on, or one that is not in
        `classes`.
    """
    images, labels, width = read_npz(path)
    highest = int(labels.max())
    if classes and highest >= len(classes):
        raise ConfigError(
            f"{path} has a label {highest}, the training split only 0 to {len(classes) - 1}"
        )
    if classes and width and width != len(classes):
        raise ConfigError(
            f"{path} has labels one-hot of {width} classes, the training split has {len(classes)}"
        )
    if not classes and labels.min() == highest:
        raise ConfigError(
            f"{path} has only the label {highest}; nothing can be learned from a single class"
        )
    names = classes or numbered_classes(width or highest + 1)
    note = note_unused_classes(labels, names)
    if note and not classes:
        start = f"labels start at {labels.min()}, not at 0; " if labels.min() else ""
        note = f"{start}{note}; the network has an output for each, so number them 0, 1, 2, ..."
    return ArraySource(images, labels, names, (note,) if note else ())


def read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Reads the arrays `images` and `labels` of a file.

    Returns:
      images, uint8 `[N, h, w, c]`; labels, integers `[N]`; C if these were one-hot, or 0.

    Raises:
      ConfigError: they are missing, or have another type or shape.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            images, labels = (_read_array(archive, name) for name in ("images", "labels"))
    except FileNotFoundError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror}); set data.dir") from error
    except Exception as error:  # zipfile, its decoders and numpy have many names for damage
        raise ConfigError(
            f"{path} must be an npz file of arrays `images` and `labels`: {short_repr(error)}"
        ) from error
    if images.ndim == 3:
        images = images[..., None]
    _check_images(path, images)
    return images, *_read_labels(path, labels, len(images))


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Reads an array of an npz file after checking its header.

    numpy's own reader would allocate whatever size the header states, and zipfile decompress it.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is of another version of numpy")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects (a pickle), which are never loaded")
        size = math.prod(shape) * dtype.itemsize
        if size != member.file_size - file.tell():
            raise ValueError(f"{name} is not as large as its header says")
        if size > memory_limit():
            raise ValueError(
                f"{name} has {size / 1e9:,.1f} GB, the machine {memory_limit() / 1e9:,.1f}; "
                "prepare them as image files"
            )
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # zipfile compares the checksum at the end of the member
    return np.asarray(array)


def _check_images(path: pathlib.Path, images: np.ndarray) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in CHANNELS:
        raise ConfigError(
            f"{path}: images must be uint8 [N, h, w, c], not {images.dtype} {images.shape}; c is "
            "1, 3 or 4"
        )
    if not images.size:
        raise ConfigError(f"{path} holds no examples, or images without pixels")


def _read_labels(path: pathlib.Path, labels: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Converts labels to integers `[N]`; returns them and C if they were one-hot `[N, C]`, or 0."""
    if labels.ndim not in (1, 2) or labels.shape[0] != count or not labels.size:
        raise ConfigError(
            f"{path}: labels must be [N], [N, 1] or one-hot [N, C], of the {count} images, not "
            f"{labels.dtype} {labels.shape}"
        )
    if labels.dtype.kind not in "biuf":
        raise ConfigError(
            f"{path}: labels must be numbers, not {labels.dtype}; number the classes from 0 on"
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = ((labels == 0) | (labels == 1)).all(axis=1) & (labels.sum(axis=1) == 1)
        if not one_hot.all():
            row = int(np.argmin(one_hot))
            raise ConfigError(
                f"{path}: labels {labels.shape} must be one-hot, a single 1 in each row; row {row} "
                "is not"
            )
        return np.argmax(labels, axis=1), labels.shape[1]
    labels = labels.ravel()
    if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.rint(labels))).all():
        raise ConfigError(f"{path}: labels must be whole numbers")
    if labels.min() < 0:
        raise ConfigError(f"{path}: labels must not be negative")
    if labels.max() >= MOST_CLASSES:
        raise ConfigError(f"{path} has a label {labels.max()}; labels must be below {MOST_CLASSES}")
    return labels.astype(np.int64), 0
