"""Packed data sets, lbsgd's own format: for each split a folder of ArrayRecord shards and an index.

`lbsgd prepare` writes them. The index lists the shards, their contents and checksums, so a set
of any size opens without reading the shards. Reading an example is one read of one shard.
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from lbsgd.data.images.decode import MAX_PIXELS, CorruptError
from lbsgd.data.keys import RESIZING_CROPS
from lbsgd.data.packed.shard_cache import CachedShard
from lbsgd.data.records import RecordFile
from lbsgd.data.source import Example, Splits, note_unused_classes, read_labels
from lbsgd.system.bucket import BucketPath
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, file_checksum, user_path
from lbsgd.system.limits import allow_open_files

INDEX = "index.json"
FORMAT, VERSION = "lbsgd packed images", 1
SPLITS = ("train", "validation")

# The files of a split, during its preparation and after.
FILES = re.compile(r"(shard-\d{5,}\.(array_record|json)|preparing\.json|index\.json)(\.tmp)?")
SHARD = re.compile(r"shard-\d{5,}\.array_record")
SHA256 = re.compile("[0-9a-f]{64}")
MOST_EXAMPLES = 2**62

# Label, height, width, bytes of the name, channels, kind of image; little-endian.
HEADER = struct.Struct("<IIIHBB")
FILE, PIXELS = 0, 1


class Shard(NamedTuple):
    """The entry of a shard in the index: its file and the size and checksum of that."""

    file: str
    examples: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of a split.

    Attributes:
      classes: the name of each class, by label.
      class_examples: how many examples each class has.
      image_shape: `(h, w, c)` of the first image.
      one_shape: whether all images have this shape.
      corrupt: names of the corrupt images of the input that were left out.
      made: the input and the options that it was made with.
    """

    classes: tuple[str, ...]
    class_examples: tuple[int, ...]
    image_shape: tuple[int, int, int]
    one_shape: bool
    shards: tuple[Shard, ...]
    corrupt: tuple[str, ...]
    made: dict[str, Any]

    @property
    def examples(self) -> int:
        """How many examples the split has."""
        return sum(shard.examples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """The bytes of its shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """A hash of the classes and of the checksums of the shards."""
        what = json.dumps([self.classes, [shard.sha256 for shard in self.shards]])
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Formats the text of index.json."""
        named = dataclasses.asdict(self) | {"shards": [s._asdict() for s in self.shards]}
        return json.dumps({"format": FORMAT, "version": VERSION, **named}, indent=1) + "\n"


def is_packed(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a packed set, or contains nothing but packed sets.

    It also recognizes a set whose preparation was interrupted at any moment.

    Raises:
      OSError: the folder cannot be read.
    """
    inside = [os.listdir(folder / split) for split in SPLITS if (folder / split).is_dir()]
    if any(FILES.fullmatch(name) for names in inside for name in names):
        return True
    if inside:
        return not any(inside) and len(os.listdir(folder)) == len(inside)
    some = False
    with os.scandir(folder) as entries:
        for entry in entries:  # in a folder of images no more than the first is looked at
            if not entry.is_dir(follow_symlinks=False) or not is_packed(pathlib.Path(entry)):
                return False
            some = True
    return some


def read_index(folder: AnyPath) -> Index:
    """Reads the index of a split.

    Raises:
      ConfigError: there is none, or it is damaged.
    """
    path = folder / INDEX
    try:
        return _parse_index(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} is not a packed set, or its preparation is not finished; run "
            f"lbsgd prepare INPUT {folder.parent} (again)"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged, or of another version of lbsgd; remove {folder} and prepare the "
            "split again"
        ) from error


def _parse_index(text: bytes) -> Index:
    values = json.loads(text)
    if (values.pop("format"), values.pop("version")) != (FORMAT, VERSION):
        raise ValueError("another format")
    height, width, channels = values.pop("image_shape")
    index = Index(
        classes=tuple(values.pop("classes")),
        class_examples=tuple(values.pop("class_examples")),
        image_shape=(height, width, channels),
        shards=tuple(Shard(**shard) for shard in values.pop("shards")),
        corrupt=tuple(values.pop("corrupt")),
        **values,
    )
    _check_types(index)
    if len(index.classes) != len(index.class_examples):
        raise ValueError("numbers of classes differ")
    if not sum(index.class_examples) == index.examples > 0:
        raise ValueError("numbers of examples differ")
    return index


def _check_types(index: Index) -> None:
    """Raises ValueError for values that `prepare` never writes: an index may come from anyone."""
    height, width, channels = index.image_shape
    counts = [height, width, channels, *index.class_examples]
    good = all(isinstance(name, str) for name in (*index.classes, *index.corrupt))
    for shard in index.shards:
        counts += [shard.examples, shard.bytes]
        # The name has no folder, so nothing outside of the split's own folder is ever read.
        good &= bool(SHARD.fullmatch(shard.file) and SHA256.fullmatch(shard.sha256))
        good &= shard.examples != 0
    good &= all(type(count) is int and 0 <= count <= MOST_EXAMPLES for count in counts)
    good &= 0 < height * width <= MAX_PIXELS and 0 < channels <= 0xFF
    if not good or type(index.one_shape) is not bool or not isinstance(index.made, dict):
        raise ValueError("values that no index has")


def pack(name: str, label: int, image: np.ndarray | bytes, shape: tuple[int, int, int]) -> bytes:
    """Packs an example into a record.

    Args:
      name: of the original image.
      label: its class.
      image: pixels, uint8 `[h, w, c]`, or the bytes of an image file.
      shape: `(h, w, c)` of the decoded image.
    """
    height, width, channels = shape
    kind = FILE if isinstance(image, bytes) else PIXELS
    named = name.encode("utf-8", "surrogateescape")[:0xFFFF]
    header = HEADER.pack(label, height, width, len(named), channels, kind)
    return b"".join((header, named, image if isinstance(image, bytes) else image.tobytes()))


def unpack(record: bytes) -> Example:
    """Unpacks the example in a record; its pixels are a view of the record.

    Raises:
      CorruptError: it is not such a record.
    """
    try:
        label, height, width, named, channels, kind = HEADER.unpack_from(record)
        start = HEADER.size + named
        if kind == FILE:
            return Example(record[start:], label)
        if kind != PIXELS or not height * width * channels:
            raise ValueError(f"kind {kind}, {width} x {height} pixels of {channels} channels")
        pixels = np.frombuffer(record, np.uint8, offset=start)
        return Example(pixels.reshape(height, width, channels), label)
    except (struct.error, ValueError) as error:
        raise CorruptError(f"not the record of an image ({error})") from error


def unpack_name(record: bytes) -> str:
    """Unpacks the name of the original image in a record."""
    named = HEADER.unpack_from(record)[3]
    return record[HEADER.size : HEADER.size + named].decode("utf-8", "replace")


class PackedSource:
    """A split of a packed set, in the order of the input that it was made from.

    Attributes:
      one_shape: whether all images have the shape `image_shape`.

    Raises:
      ConfigError: it is not complete: no index, or a shard is missing or has another size.
    """

    def __init__(self, folder: AnyPath) -> None:
        index = read_index(folder)
        self.classes, self.image_shape = index.classes, index.image_shape
        self.fingerprint, self.one_shape = index.fingerprint, index.one_shape
        note = note_unused_classes(np.flatnonzero(index.class_examples), index.classes)
        self.notes: tuple[str, ...] = (note,) if note else ()
        _check_sizes(folder, index.shards)
        self._shards = [_record_file(folder / shard.file, shard) for shard in index.shards]
        self._ends = list(itertools.accumulate(shard.examples for shard in index.shards))
        allow_open_files(len(self._shards))

    @property
    def labels(self) -> np.ndarray:
        return read_labels(self)

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[RecordFile, int]:
        """Returns the shard of an example, and the number of its record there."""
        if not 0 <= index < self._ends[-1]:
            raise IndexError(index)
        which = bisect.bisect_right(self._ends, index)
        shard = self._shards[which]
        return shard, index - self._ends[which] + shard.records

    def __getitem__(self, index: int) -> Example:
        shard, position = self._find(index)
        example = unpack(shard.read(position, position + 1)[0])
        if example.label >= len(self.classes):
            raise CorruptError(f"label {example.label}, of {len(self.classes)} classes")
        channels = 3 if isinstance(example.image, bytes) else example.image.shape[2]
        if channels != self.image_shape[2]:
            raise CorruptError(f"{channels} channels, the set has {self.image_shape[2]}")
        return example

    def name(self, index: int) -> str:
        shard, position = self._find(index)
        where = f"{shard.path.parent.name}/{shard.path.name}, record {position}"
        try:
            return f"{where} ({unpack_name(shard.read(position, position + 1)[0])})"
        except (CorruptError, ConfigError, struct.error):
            return where


def _check_sizes(folder: AnyPath, shards: Sequence[Shard]) -> None:
    """Checks that the shards of a split are there; many at a time, for a bucket answers slowly.

    Raises:
      ConfigError: one is missing or has another size.
    """
    with ThreadPoolExecutor(16, "lbsgd-sizes") as pool:
        found = list(pool.map(lambda shard: size_error(folder / shard.file, shard), shards))
    for shard, wrong in zip(shards, found):
        if wrong:
            mend = f"copy the prepared set to {folder.parent} again"
            if isinstance(folder, pathlib.Path):
                mend = (
                    f"`lbsgd prepare --verify {folder.parent}` names all damage; then remove "
                    f"{folder} and prepare it again"
                )
            raise ConfigError(f"{folder / shard.file} {wrong}; {mend}")


def _record_file(path: AnyPath, shard: Shard) -> RecordFile:
    local = CachedShard(path, shard) if isinstance(path, BucketPath) else None
    return RecordFile(path, shard.examples, local)


def packed(config: ml_collections.ConfigDict) -> Splits:
    """Opens what `lbsgd prepare` wrote: `train/` and `validation/` in data.dir."""
    root = user_path(config.dir)
    try:
        there, split = bool(config.dir) and root.is_dir(), (root / INDEX).is_file()
    except OSError as error:
        raise ConfigError(
            f"data.dir={config.dir!r} cannot be read ({error.strerror or error})"
        ) from error
    if not there:
        raise ConfigError(f"data.dir={config.dir!r} is not a folder; make it by lbsgd prepare")
    if split:
        raise ConfigError(
            f"data.dir={config.dir!r} is one split of a prepared set; set data.dir to the folder "
            "around it"
        )
    train, validation = (PackedSource(root / split) for split in SPLITS)
    if config.crop not in RESIZING_CROPS and not (train.one_shape and validation.one_shape):
        raise ConfigError(
            f"data.dir={config.dir!r} holds images of several sizes; set data.crop='inception', "
            f"not {config.crop!r}"
        )
    if train.classes != validation.classes:
        raise ConfigError(
            f"data.dir={config.dir!r}: the classes of train/ and validation/ differ; remove "
            "validation/ and prepare it again, when train/ is there"
        )
    return Splits(train, validation)


class Damage(NamedTuple):
    """A damaged shard, and what is wrong with it."""

    file: str
    reason: str


def size_error(path: AnyPath, shard: Shard) -> str:
    """Describes how the size of a shard differs from the index; "" if it does not."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if size == shard.bytes else f"has {size:,} bytes, not {shard.bytes:,}"


def _check(path: pathlib.Path, shard: Shard) -> str:
    """Reads a whole shard and describes what is wrong with it; "" if nothing is."""
    try:
        wrong = size_error(path, shard)
        if not wrong and file_checksum(path) != shard.sha256:
            wrong = "has another checksum"
        if not wrong:
            RecordFile(path, shard.examples).read(shard.examples - 1, shard.examples)
        return wrong
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (CorruptError, ConfigError) as error:
        return str(error)


def verify_split(
    folder: pathlib.Path, threads: int = 1, checked: Callable[[Shard], None] = lambda shard: None
) -> list[Damage]:
    """Reads all shards of a split and returns the damaged ones.

    Args:
      threads: how many shards are read at the same time.
      checked: called after each shard.

    Raises:
      ConfigError: the index is missing or damaged.
    """
    damage = []
    shards = read_index(folder).shards
    with ThreadPoolExecutor(threads, "lbsgd-verify") as pool:
        reasons = pool.map(lambda shard: _check(folder / shard.file, shard), shards)
        for shard, reason in zip(shards, reasons):
            checked(shard)
            if reason:
                damage.append(Damage(shard.file, reason))
    return damage
