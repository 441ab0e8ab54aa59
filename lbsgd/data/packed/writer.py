"""Writes a split of a packed set; stopped at any moment, it goes on where it was.

    preparing.json                from what and how: there from the beginning to the end
    shard-00000.array_record.tmp  being written, or read back
    shard-00000.array_record      a shard
    shard-00000.json              what is known of it: with that it is finished
    index.json                    last, in one step: with that the split is whole

What is written depends on the input and the options alone: threads convert the examples, one
thread writes them in their order.
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
    Item,
    Limits,
    Part,
    ShardWriter,
    damaged_note,
    finished_parts,
    read_note,
    shard_path,
)
from lbsgd.data.source import Source
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import replace_file
from lbsgd.system.progress import CountProgress

BEGUN = "preparing.json"
# What must be the same to go on, in words; the input's name and lbsgd's version need not.
SAME = {"fingerprint": "input", "encoding": "option", "shards": "size of shards"}
# Examples that a thread converts at a time.
FEW = 8
# Shards that wait to be read back while another is written.
UNCHECKED = 2


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
      folder: of the split.
      origin: what the source is, for people.
      progress: in examples; what is left out has a line there.
      skip: leaves out what is corrupt, instead of stopping.
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
        """From what and how, as the index has it."""
        return {
            "input": self.origin,
            "lbsgd": lbsgd.__version__,
            "fingerprint": self.source.fingerprint,
            "encoding": dataclasses.asdict(self.encoding),
            "shards": self.limits._asdict(),
        }


def write_split(job: Job) -> Index:
    """Writes a split, or what is missing of it; does nothing where it is whole.

    Raises:
      ConfigError: a corrupt example, other input or options than before, or trouble with the disk.
    """
    folder = job.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if (folder / INDEX).exists():
                _check_same(job, read_index(folder).made)
                PackedSource(folder)  # checks that all shards are there
            else:
                _begin(job)
                parts = finished_parts(folder)
                kept = {BEGUN} | {name for part in parts for name in part.files}
                _remove(folder, lambda name: name not in kept)
                index = _index(job, *_write_parts(job, parts))
                replace_file(folder / INDEX, index.to_json())
            _remove(folder, lambda name: not name.endswith(".array_record") and name != INDEX)
            return read_index(folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename or folder} ({error.strerror}); once that is mended the "
            "same command goes on from here"
        ) from error


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out, where the file system can."""
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
    """Removes files of a preparation."""
    for path in list(folder.iterdir()):
        if FILES.fullmatch(path.name) and which(path.name):
            path.unlink()


def _begin(job: Job) -> None:
    """Notes what is made from what, or checks that it is what was begun."""
    path = job.folder / BEGUN
    if path.exists():
        _check_same(job, read_note(path))
        return
    foreign = [p.name for p in job.folder.iterdir() if not FILES.fullmatch(p.name)]
    if foreign:
        raise ConfigError(
            f"{job.folder} holds {foreign[0]!r}, which is of no packed set; choose another OUTPUT"
        )
    _remove(job.folder, lambda name: True)
    replace_file(path, json.dumps(job.made))


def _check_same(job: Job, begun: dict[str, Any]) -> None:
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
    """What differs, in words."""
    if not isinstance(now, dict):
        return f"{then}, now {now}"
    changed = {key: (then.get(key), value) for key, value in now.items() if then.get(key) != value}
    return ", ".join(f"{key} {before}, now {after}" for key, (before, after) in changed.items())


def _convert(job: Job, indices: range) -> list[Item]:
    return [_item(job, index) for index in indices]


def _item(job: Job, index: int) -> Item:
    name = job.source.name(index)
    try:
        image, label = job.source[index]
        stored, shape = job.encoding(image)
    except CorruptError as error:
        return Item(index, name, error=str(error))
    record = pack(name, label, stored, shape)
    return Item(index, name, label, shape, record, hashlib.sha256(record).digest())


def _write_parts(job: Job, parts: list[Part]) -> tuple[list[Part], list[str]]:
    """All shards, given the first ones; and the names of what is left out after the last."""
    pool = ThreadPoolExecutor(job.threads, "lbsgd-prepare")
    interrupted = False
    try:
        return _write_rest(job, parts, pool)
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:  # after an error the shards that are written shall still be read back, and count
        pool.shutdown(wait=not interrupted, cancel_futures=interrupted)


def _write_rest(
    job: Job, parts: list[Part], pool: ThreadPoolExecutor
) -> tuple[list[Part], list[str]]:
    parts, corrupt = list(parts), []
    classes, number = len(job.source.classes), len(parts)
    shard: ShardWriter | None = None
    unchecked: deque[Future[Part]] = deque()
    for item in _in_order(job, pool, parts[-1].following if parts else 0):
        if item.error:
            corrupt.append(_leave_out(job, item))
            continue
        if shard is None or not shard.has_room(item.record, job.limits):
            if shard:
                unchecked.append(pool.submit(shard.finish, classes))
            while len(unchecked) > UNCHECKED:
                parts.append(unchecked.popleft().result())
            shard, number = ShardWriter(shard_path(job.folder, number)), number + 1
        shard.write(item, corrupt)
        corrupt = []
    if shard:
        unchecked.append(pool.submit(shard.finish, classes))
    return parts + [future.result() for future in unchecked], corrupt


def _in_order(job: Job, pool: ThreadPoolExecutor, start: int) -> Iterator[Item]:
    """The examples from `start` on, converted by the threads."""
    job.progress.start(start)
    count = len(job.source)
    waiting: deque[Future[list[Item]]] = deque()
    for first in range(start, count, FEW):
        waiting.append(pool.submit(_convert, job, range(first, min(first + FEW, count))))
        if len(waiting) > 2 * job.threads:
            yield from _next(job, waiting)
    while waiting:
        yield from _next(job, waiting)


def _next(job: Job, waiting: deque[Future[list[Item]]]) -> list[Item]:
    items = waiting.popleft().result()
    job.progress.advance(len(items))
    return items


def _leave_out(job: Job, item: Item) -> str:
    """The name of a corrupt example.

    Raises:
      ConfigError: it must not be left out.
    """
    if not job.skip:
        raise ConfigError(
            f"{item.name} is corrupt: {item.error}; mend it, or leave it out with --on-corrupt skip"
        )
    job.progress.line(f"left out {item.name}: {item.error}")
    return item.name


def _index(job: Job, parts: list[Part], corrupt: list[str]) -> Index:
    """The index of these shards; `corrupt` has what is left out after the last."""
    if not parts:
        raise ConfigError(f"not one of the {len(job.source)} images can be read")
    shape = parts[0].image_shape
    return Index(
        classes=job.source.classes,
        class_examples=tuple(np.sum([part.labels for part in parts], axis=0).tolist()),
        image_shape=shape,
        one_shape=all(part.one_shape and part.image_shape == shape for part in parts),
        shards=tuple(part.shard for part in parts),
        corrupt=tuple(itertools.chain(*(part.corrupt for part in parts), corrupt)),
        made=job.made,
    )
