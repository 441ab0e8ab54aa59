"""Adds ArrayRecord files, which can be read at random, to a dataset that is prepared as TFRecord.

`lbsgd prepare --tfrecord FOLDER` does what `tfds convert_format` does, but needs neither TensorFlow
nor Apache Beam. The checksums of the TFRecord files are not looked at.
"""

import json
import os
import pathlib
from collections.abc import Iterator

from lbsgd.data.sources.tfds import formats, load, set_format
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import move_into_place, replace_file


def records(path: pathlib.Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length, checksum, record, checksum; then the next.

    Raises:
      ConfigError: they do not end where the file does.
    """
    left = path.stat().st_size
    with path.open("rb") as file:
        while left:
            length = int.from_bytes(file.read(12)[:8], "little")
            left -= 12 + length + 4
            if left < 0:
                raise ConfigError(f"{path} is cut short or damaged")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)


def convert_file(path: pathlib.Path, out: pathlib.Path, count: int) -> None:
    """Copies the `count` records of a TFRecord file; `out` is there only when it is whole.

    Raises:
      ConfigError: it has more or fewer, or is damaged; or the disk is full.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = out.with_name(f"incomplete.{out.name}")
    found = 0
    try:
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for record in records(path):
            writer.write(record)
            found += 1
        writer.close()
    except RuntimeError as error:
        raise ConfigError(f"cannot write {partial}: {error}") from error
    if found != count:
        raise ConfigError(f"{path} has {found} records, not the {count} of dataset_info.json")
    move_into_place(partial, out)


def convert(folder: pathlib.Path) -> None:
    """Adds ArrayRecord files to the TFRecord files in the folder of a version of a dataset.

    Those that are there are left, so that it goes on where it was stopped.

    Raises:
      ConfigError: no prepared dataset, or a damaged file.
    """
    builder = load(folder)
    there = formats(builder)
    if "array_record" in there:
        return
    if "tfrecord" not in there:
        raise ConfigError(f"{folder} has no TFRecord files")
    set_format(builder, "tfrecord")
    for split in builder.info.splits.values():
        for path, count in zip(split.filepaths, split.shard_lengths):
            out = folder / path.name.replace(".tfrecord-", ".array_record-")
            if not out.exists():
                convert_file(pathlib.Path(path), out, count)
                print(out)
    _note_format(folder / "dataset_info.json")


def _note_format(path: pathlib.Path) -> None:
    """Adds ArrayRecord to the formats that dataset_info.json lists."""
    info = json.loads(path.read_text())
    info["alternativeFileFormats"] = [*info.get("alternativeFileFormats", []), "array_record"]
    replace_file(path, json.dumps(info, indent=2))
