"""Writing of a split of a packed set; if interrupted at any moment, it resumes where it was.

    preparing.json                the input and the options; exists until the split is complete
    shard-00000.array_record.tmp  a shard that is being written or read back
    shard-00000.array_record      a shard
    shard-00000.json              a note on that shard; its existence marks the shard as finished
    index.json                    written last and atomically; it marks the split as complete

The output depends on the input and the options only: threads convert the examples, and one thread
writes them in their order.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

import lbsgd
from lbsgd.data.images.decode import CorruptError
from lbsgd.data.images.encode import Encoding
from lbsgd.data.packed.reader import FILES, INDEX, Index, PackedSource, pack, read_index
from lbsgd.data.packed.shard_writer import (
    FinishedShard,
    Item,
    Limits,
    ShardWriter,
    damaged_note,
    finished_shards,
    read_note,
    shard_path,
)
from lbsgd.data.source import Source
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import replace_file
from lbsgd.system.progress import CountProgress

BEGUN = "preparing.json"
# What must be the same to resume, with its word for messages; the name of the input and the version
# of lbsgd may differ.
SAME = {"fingerprint": "input", "encoding": "option", "shards": "size of shards"}
# Examples that a thread converts at a time.
FEW = 8
# Most shards that wait to be read back while another one is written.
UNCHECKED = 2


@dataclasses.dataclass(frozen=True)
class SplitJob:
    """A split to be written.

    Attributes:
      source: the examples.
      folder: where the split is written.
      origin: the name of the source, for people.
      encoding: how images are stored.
      progress: in examples; it prints a line for each example that is left out.
      skip: leaves out corrupt examples instead of stopping.
      threads: how many threads convert examples.
      limits: the largest size of a shard.
    """

    source: Source
    folder: pathlib.Path
    origin: str
    encoding: Encoding
    progress: CountProgress
    skip: bool = False
    threads: int = 1
    limits: Limits = dataclasses.field(default_factory=Limits)

    @property
    def made(self) -> dict[str, Any]:
        """The input and the options, as the index stores them."""
        return {
            "input": self.origin,
            "lbsgd": lbsgd.__version__,
            "fingerprint": self.source.fingerprint,
            "encoding": dataclasses.asdict(self.encoding),
            "shards": self.limits._asdict(),
        }


def write_split(job: SplitJob) -> Index:
    """Writes a split, or what is missing of it; does nothing if it is complete.

    Raises:
      ConfigError: an example is corrupt, the input or the options differ from those that the split
        was begun with, or it cannot be written.
    """
    folder = job.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / INDEX).exists():
                _check_same(job, read_index(folder).made)
                PackedSource(folder)  # checks that all shards are there
            else:
                _begin(job)
                shards = finished_shards(folder)
                kept = {BEGUN} | {name for shard in shards for name in shard.files}
                _remove(folder, lambda name: name not in kept)
                index = _index(job, *_write_shards(job, shards))
                replace_file(folder / INDEX, index.to_json())
            _remove(folder, lambda name: not name.endswith(".array_record") and name != INDEX)
            return read_index(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename or folder} ({error.strerror}); once that is mended, the "
            "same command resumes from here"
        ) from error


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Locks the folder against other processes, if the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is preparing {folder}") from None
        yield
    finally:
        os.close(descriptor)


def _remove(folder: pathlib.Path, which: Callable[[str], bool]) -> None:
    """Removes those files of a preparation that `which` selects by name."""
    for path in list(folder.iterdir()):
        if FILES.fullmatch(path.name) and which(path.name):
            path.unlink()


def _begin(job: SplitJob) -> None:
    """Writes the note of the input and the options, or checks that they are those of the note."""
    path = job.folder / BEGUN
    if path.exists():
        _check_same(job, read_note(path))
        return
    foreign = [p.name for p in job.folder.iterdir() if not FILES.fullmatch(p.name)]
    if foreign:
        raise ConfigError(
            f"{job.folder} holds {foreign[0]!r}, which does not belong to a packed set; choose "
            "another OUTPUT"
        )
    _remove(job.folder, lambda name: True)
    replace_file(path, json.dumps(job.made))


def _check_same(job: SplitJob, begun: dict[str, Any]) -> None:
    made = job.made
    if not isinstance(begun, dict) or not all(
        isinstance(begun.get(key), type(made[key])) for key in SAME
    ):
        raise damaged_note(job.folder / BEGUN)
    for key, word in SAME.items():
        if begun[key] != made[key]:
            raise ConfigError(
                f"{job.folder} was begun with another {word} ({_change(begun[key], made[key])}); "
                "choose another OUTPUT, or remove that folder"
            )


def _change(then: Any, now: Any) -> str:
    """Describes what differs."""
    if not isinstance(now, dict):
        return f"{then}, now {now}"
    changed = {key: (then.get(key), value) for key, value in now.items() if then.get(key) != value}
    return ", ".join(f"{key} {before}, now {after}" for key, (before, after) in changed.items())


def _convert(job: SplitJob, indices: range) -> list[Item]:
    return [_item(job, index) for index in indices]


def _item(job: SplitJob, index: int) -> Item:
    name = job.source.name(index)
    try:
        image, label = job.source[index]
        stored, shape = job.encoding(image)
    except CorruptError as error:
        return Item(index, name, error=str(error))
    record = pack(name, label, stored, shape)
    return Item(index, name, label, shape, record, hashlib.sha256(record).digest())


def _write_shards(
    job: SplitJob, shards: list[FinishedShard]
) -> tuple[list[FinishedShard], list[str]]:
    """Writes the shards after `shards`; returns all, and the names left out after the last one."""
    pool = ThreadPoolExecutor(job.threads, "lbsgd-prepare")
    interrupted = False
    try:
        return _write_rest(job, shards, pool)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:  # after an error, shards that are already written are still read back and kept
        pool.shutdown(wait=not interrupted, cancel_futures=interrupted)


def _write_rest(
    job: SplitJob, shards: list[FinishedShard], pool: ThreadPoolExecutor
) -> tuple[list[FinishedShard], list[str]]:
    shards, corrupt = list(shards), []
    classes, number = len(job.source.classes), len(shards)
    shard: ShardWriter | None = None
    unchecked: deque[Future[FinishedShard]] = deque()
    for item in _in_order(job, pool, shards[-1].following if shards else 0):
        if item.error:
            corrupt.append(_leave_out(job, item))
            continue
        if shard is None or not shard.has_room(item.record, job.limits):
            if shard:
                unchecked.append(pool.submit(shard.finish, classes))
            while len(unchecked) > UNCHECKED:
                shards.append(unchecked.popleft().result())
            shard, number = ShardWriter(shard_path(job.folder, number)), number + 1
        shard.write(item, corrupt)
        corrupt = []
    if shard:
        unchecked.append(pool.submit(shard.finish, classes))
    return shards + [future.result() for future in unchecked], corrupt


def _in_order(job: SplitJob, pool: ThreadPoolExecutor, start: int) -> Iterator[Item]:
    """Yields the examples from `start` on in their order, converted by the threads."""
    job.progress.start(start)
    count = len(job.source)
    waiting: deque[Future[list[Item]]] = deque()
    for first in range(start, count, FEW):
        waiting.append(pool.submit(_convert, job, range(first, min(first + FEW, count))))
        if len(waiting) > 2 * job.threads:
            yield from _next(job, waiting)
    while waiting:
        yield from _next(job, waiting)


def _next(job: SplitJob, waiting: deque[Future[list[Item]]]) -> list[Item]:
    items = waiting.popleft().result()
    job.progress.advance(len(items))
    return items


def _leave_out(job: SplitJob, item: Item) -> str:
    """Leaves out a corrupt example and returns its name.

    Raises:
      ConfigError: corrupt examples must not be left out.
    """
    if not job.skip:
        raise ConfigError(
            f"{item.name} is corrupt: {item.error}; mend it, or leave it out with --on_corrupt skip"
        )
    job.progress.line(f"left out {item.name}: {item.error}")
    return item.name


def _index(job: SplitJob, shards: list[FinishedShard], corrupt: list[str]) -> Index:
    """Builds the index of these shards; `corrupt` names what was left out after the last one."""
    if not shards:
        raise ConfigError(f"none of the {len(job.source)} images can be read")
    shape = shards[0].image_shape
    return Index(
        classes=job.source.classes,
        class_examples=tuple(np.sum([shard.labels for shard in shards], axis=0).tolist()),
        image_shape=shape,
        one_shape=all(shard.one_shape and shard.image_shape == shape for shard in shards),
        shards=tuple(shard.shard for shard in shards),
        corrupt=tuple(itertools.chain(*(shard.corrupt for shard in shards), corrupt)),
        made=job.made,
    )
