"""Writing of the shards of a packed set: a shard is finished only when it has been read back."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.packed.reader import Shard, size_error
from lbsgd.data.records import WRITER_OPTIONS, RecordFile
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import file_checksum, move_into_place, replace_file

# Records that are read back at a time.
FEW = 8


class Limits(NamedTuple):
    """The largest size of a shard."""

    examples: int = 10_000
    bytes: int = 10**9


class Item(NamedTuple):
    """An example ready to be stored, or the reason why it cannot be."""

    example: int
    name: str
    label: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    record: bytes = b""
    digest: bytes = b""
    error: str = ""


class FinishedShard(NamedTuple):
    """A finished shard, and what else the index needs of it.

    Attributes:
      following: index in the source of the example after the last one in the shard.
      labels: how many examples each label has.
      corrupt: names of the examples that were left out since the end of the previous shard.
    """

    shard: Shard
    following: int
    labels: list[int]
    image_shape: tuple[int, int, int]
    one_shape: bool
    corrupt: list[str]

    @property
    def files(self) -> tuple[str, str]:
        """The names of the shard's file and of the note beside it."""
        return self.shard.file, _note(pathlib.Path(self.shard.file)).name


def finished_shards(folder: pathlib.Path) -> list[FinishedShard]:
    """Finds the finished shards in a folder, up to the first one that is not finished."""
    shards: list[FinishedShard] = []
    for number in itertools.count():
        path = shard_path(folder, number)
        note = _note(path)
        if not note.exists():
            break
        part = _read_finished(note)
        if part.shard.file != path.name or size_error(path, part.shard):
            break
        shards.append(part)
    return shards


def _read_finished(note: pathlib.Path) -> FinishedShard:
    try:
        shard, following, labels, shape, *others = read_note(note)
        part = FinishedShard(Shard(*shard), following, labels, tuple(shape), *others)
        if any(type(number) is not int for number in (following, *labels, *shape)):
            raise ValueError("not numbers")
        return part
    except (TypeError, ValueError) as error:
        raise damaged_note(note) from error


def damaged_note(path: pathlib.Path) -> ConfigError:
    """Returns the error for a damaged JSON file of a preparation."""
    return ConfigError(f"{path} is damaged; remove {path.parent} and prepare it again")


def shard_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Returns the path of a shard."""
    return folder / f"shard-{number:05d}.array_record"


def _note(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def read_note(path: pathlib.Path) -> Any:
    """Reads a JSON file of a preparation.

    Raises:
      ConfigError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise damaged_note(path) from error


class ShardWriter:
    """Writes one shard.

    Raises:
      ConfigError: it cannot be written.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._partial = path, path.with_name(f"{path.name}.tmp")
        with _naming_file(self._partial):
            self._file = ArrayRecordWriter(str(self._partial), WRITER_OPTIONS)
        self._bytes = 0
        self._digests: list[bytes] = []
        self._labels: list[int] = []
        self._shapes: list[tuple[int, int, int]] = []
        self._corrupt: list[str] = []
        self._following = 0

    def has_room(self, record: bytes, limits: Limits) -> bool:
        """Returns whether the record fits into the shard; the first one always does."""
        more = self._bytes + len(record) <= limits.bytes
        return not self._digests or (more and len(self._digests) < limits.examples)

    def write(self, item: Item, corrupt: list[str]) -> None:
        """Adds an example; `corrupt` names those that were left out before it."""
        with _naming_file(self._partial):
            self._file.write(item.record)
        self._bytes += len(item.record)
        self._digests.append(item.digest)
        self._labels.append(item.label)
        self._shapes.append(item.shape)
        self._corrupt += corrupt
        self._following = item.example + 1

    def finish(self, classes: int) -> FinishedShard:
        """Syncs the shard, reads it back, and marks it as finished by its name and its note.

        It is read from the disk, not from the system's cache, if the system supports that.

        Args:
          classes: number of classes.
        """
        with _naming_file(self._partial):
            self._file.close()
        self._to_disk()
        self._read_back()
        size = self._partial.stat().st_size
        shard = Shard(self._path.name, len(self._digests), size, file_checksum(self._partial))
        move_into_place(self._partial, self._path)
        shape = self._shapes[0]
        part = FinishedShard(
            shard,
            self._following,
            np.bincount(self._labels, minlength=classes).tolist(),
            shape,
            all(other == shape for other in self._shapes),
            self._corrupt,
        )
        replace_file(_note(self._path), json.dumps(part))
        return part

    def _to_disk(self) -> None:
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _read_back(self) -> None:
        file = RecordFile(self._partial, len(self._digests))
        try:
            for start in range(0, file.records, FEW):
                records = file.read(start, min(start + FEW, file.records))
                digests = [hashlib.sha256(record).digest() for record in records]
                if digests != self._digests[start : start + FEW]:
                    raise CorruptError("records are not what was written")
        except CorruptError as error:
            raise ConfigError(
                f"{self._partial} cannot be read back ({error}); check the disk, and run this again"
            ) from error


@contextlib.contextmanager
def _naming_file(path: pathlib.Path) -> Iterator[None]:
    """Turns an error of ArrayRecord into a ConfigError that names the file."""
    try:
        yield
    except RuntimeError as error:
        raise ConfigError(
            f"cannot write {path} ({error}); once that is mended, the same command "
            "resumes from here"
        ) from error
