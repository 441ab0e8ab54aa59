"""Datasets prepared by tensorflow-datasets as ArrayRecord files, read without TensorFlow.

tensorflow-datasets provides the description of a dataset: features, splits, files. The records are
read and parsed here, because `as_data_source` takes far longer for that than a step of training on
small images.
"""

import bisect
import difflib
import hashlib
import itertools
import json
import os
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from google.protobuf.message import DecodeError

from lbsgd.data.images.decode import CorruptError
from lbsgd.data.records import RecordFile
from lbsgd.data.source import Example, Source, Splits, first_image_shape, read_labels
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import expand_home
from lbsgd.system.limits import allow_open_files
from lbsgd.system.text import short_repr

# Keys that name a Python class in a features.json; the prefix of tensorflow-datasets' own classes.
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
OWN_CLASSES = "tensorflow_datasets.core.features."


class RecordRange(NamedTuple):
    """Consecutive records of a file: `take` records after the first `skip`."""

    file: RecordFile
    skip: int
    take: int


class TfdsSource:
    """A split of a prepared dataset, or a slice of one: encoded images and their classes.

    Args:
      builder: of tensorflow-datasets, with ArrayRecord files.
      split: in the syntax of tensorflow-datasets: "train", "train[:90%]", "train+validation", ...
      key: the config key that names the split, for messages.

    Raises:
      ConfigError: there is no such split, it is empty, it has no images with classes, or a file is
        missing.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, builder: Any, split: str, key: str = "split") -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        info = builder.info
        self.split, self._parse = split, tf_example_pb2.Example.FromString
        self._image, self._label = _image_and_label(info)
        self.classes = tuple(info.features[self._label].names)
        self._pieces = _pieces(info, split, key)
        self._ends = list(itertools.accumulate(piece.take for piece in self._pieces))
        sizes = {name: [s.num_examples, int(s.num_bytes)] for name, s in info.splits.items()}
        what = json.dumps([info.full_name, split, len(self), sizes], sort_keys=True)
        self.fingerprint = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
        self.image_shape = first_image_shape(self)

    @property
    def labels(self) -> np.ndarray:
        return read_labels(self)

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[RecordFile, int]:
        """Returns the file of an example, and the number of its record there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self._ends, index)
        file, skip, take = self._pieces[which]
        return file, skip + take + index - self._ends[which]

    def __getitem__(self, index: int) -> Example:
        file, record = self._find(index)
        try:
            features = self._parse(file.read(record, record + 1)[0]).features.feature
            image = features[self._image].bytes_list.value[0]
            label = features[self._label].int64_list.value[0]
        except (DecodeError, IndexError) as error:
            raise CorruptError("not the record of an image and its class") from error
        if not 0 <= label < len(self.classes):
            raise CorruptError(f"label {label}, of {len(self.classes)} classes")
        return Example(image, label)

    def name(self, index: int) -> str:
        file, record = self._find(index)
        return f"{self.split}[{index}], record {record} of {file.path.name}"


def tfds(config: ml_collections.ConfigDict) -> Splits:
    """Opens a dataset of tensorflow-datasets: `tfds_name` in `dir`, split as `tfds_*` say.

    `dir` is the data_dir of tensorflow-datasets ("" for its default), or the folder of one version
    of the dataset. Nothing is downloaded.
    """
    from tensorflow_datasets.core.constants import DATA_DIR

    _parse_name(config.tfds_name)
    builder = load_builder(expand_home(config.dir or DATA_DIR), config.tfds_name)
    _check_name(builder.info, config.tfds_name)
    _use_array_records(builder)
    validation = config.tfds_validation or _validation(builder.info)
    if not validation:
        raise ConfigError(
            f"{builder.info.full_name} has neither a validation nor a test split; set "
            "data.tfds_validation, such as 'train[90%:]' with data.tfds_train='train[:90%]'"
        )
    return Splits(
        TfdsSource(builder, config.tfds_train, "data.tfds_train"),
        TfdsSource(builder, validation, "data.tfds_validation"),
    )


def tfds_splits(directory: pathlib.Path) -> dict[str, Source]:
    """Opens the splits "train" and "validation" (or else test) of a prepared dataset.

    Args:
      directory: the folder of one version of the dataset, with dataset_info.json.

    Raises:
      ConfigError: as in `TfdsSource`, or there are no ArrayRecord files.
    """
    builder = load_builder(directory)
    _use_array_records(builder)
    names = {"train": "train", "validation": _validation(builder.info)}
    return {
        ours: TfdsSource(builder, theirs)
        for ours, theirs in names.items()
        if theirs in builder.info.splits
    }


def _validation(info: Any) -> str:
    return next((name for name in ("validation", "test") if name in info.splits), "")


def _image_and_label(info: Any) -> tuple[str, str]:
    """Finds the names of the features of the image and of its class."""
    from tensorflow_datasets.core.features import ClassLabel, Image

    found = info.features
    for keys in (info.supervised_keys, ("image", "label")):
        if not keys or not all(isinstance(key, str) and key in found for key in keys):
            continue
        image, label = keys[:2]
        is_image = isinstance(found[image], Image) and found[image].np_dtype == "uint8"
        if is_image and isinstance(found[label], ClassLabel) and found[label].num_classes:
            return image, label
    kinds = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in found.items())
    raise ConfigError(
        f"{info.full_name} has no 8-bit image with a class label; its features are {kinds}"
    )


def _pieces(info: Any, split: str, key: str) -> list[RecordRange]:
    """Finds the files of a split and the ranges of their records."""
    try:
        pieces = [
            RecordRange(RecordFile(pathlib.Path(i.filename), i.examples_in_shard), i.skip, i.take)
            for i in info.splits[split].file_instructions
        ]
    except ValueError as error:
        reason = str(error).splitlines()[0]
    else:
        reason = "" if pieces else "it has no examples"
    if reason:
        there = ", ".join(f"{name} ({s.num_examples} examples)" for name, s in info.splits.items())
        raise ConfigError(
            f"{key}={split!r} is not a split of {info.full_name}: {reason.rstrip('.')}; there are "
            f"{there} and slices such as 'train[:90%]'"
        )
    for piece in pieces:
        if not piece.file.path.exists():
            raise ConfigError(f"{piece.file.path} is missing; prepare {info.full_name} again")
    allow_open_files(len(pieces))
    return pieces


def load_builder(folder: pathlib.Path, name: str = "") -> Any:
    """Loads the builder of a prepared dataset from the description in its folder.

    Args:
      folder: of one version of the dataset, or the data_dir in which to find `name`.
      name: of the dataset, as in data.tfds_name.

    Raises:
      ConfigError: there is no such dataset, or it cannot be read.
    """
    import tensorflow_datasets

    for file in _features_files(folder, name):
        _check_features(file)
    try:
        if not name or (folder / "dataset_info.json").exists():
            return tensorflow_datasets.builder_from_directory(folder)
        find = tensorflow_datasets.core.read_only_builder.builder_from_files
        return find(name, data_dir=folder)
    except tensorflow_datasets.core.DatasetNotFoundError:
        raise ConfigError(_not_found(folder, name)) from None
    except Exception as error:  # for damaged files tensorflow-datasets raises many kinds of errors
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"{folder} holds no dataset that can be read: {short_repr(reason)}"
        ) from error


def _features_files(folder: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    if not name or (folder / "dataset_info.json").exists():
        return iter([folder / "features.json"])
    return folder.glob(f"{_parse_name(name)[0]}/**/features.json")


def _check_features(path: pathlib.Path) -> None:
    """Raises ConfigError if a features.json names classes other than tensorflow-datasets' own.

    tensorflow-datasets would import any module that it names, so data could run code.
    """
    named: list[Any] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named.extend(value for key, value in pairs if key in CLASS_KEYS)
        return dict(pairs)

    try:
        json.loads(path.read_bytes(), object_pairs_hook=note)
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path.parent} holds no dataset that can be read: {path.name} is damaged"
        ) from error
    for name in named:
        if not (isinstance(name, str) and name.startswith(OWN_CLASSES)):
            raise ConfigError(
                f"{path} names the class {short_repr(name)}, which does not belong to "
                "tensorflow-datasets; it is not imported"
            )


def _use_array_records(builder: Any) -> None:
    """Makes a builder read the ArrayRecord files, whatever other files there are."""
    there, folder = formats(builder), os.fspath(builder.data_dir)
    if "array_record" in there:
        return set_format(builder, "array_record")
    if "tfrecord" in there:
        raise ConfigError(
            f"{folder} has TFRecord files, which have no random access; to add ArrayRecord files: "
            f"lbsgd prepare --tfrecord {shlex.quote(folder)}"
        )
    raise ConfigError(
        f"{folder} has {' and '.join(sorted(there))} files; prepare the dataset in another "
        "data.dir with file_format='array_record'"
    )


def formats(builder: Any) -> set[str]:
    """Returns the formats of the files of a dataset: "array_record", "tfrecord", ..."""
    return {form.value for form in builder.info.available_file_formats()}


def set_format(builder: Any, file_format: str) -> None:
    """Makes a builder read the files of this format."""
    builder.info.set_file_format(file_format, override=True, override_if_initialized=True)


def _parse_name(name: str) -> tuple[str, dict[str, str]]:
    """Parses "a/b:1.0.0" to "a" and {"config": "b", "version": "1.0.0"}."""
    from tensorflow_datasets.core.naming import parse_builder_name_kwargs

    try:
        dataset, wanted = parse_builder_name_kwargs(name)
    except ValueError:
        raise ConfigError(
            f"data.tfds_name={name!r} must be of the form name, name/config or name/config:1.2.3"
        ) from None
    return dataset.name, wanted


def _check_name(info: Any, name: str) -> None:
    """Raises ConfigError if `name` does not match the dataset, its config and its version."""
    dataset, wanted = _parse_name(name)
    config, version = wanted.get("config"), wanted.get("version")
    if (
        dataset != info.name
        or (config and config != info.config_name)
        or (version and not info.version.match(version))
    ):
        raise ConfigError(f"data.dir holds {info.full_name}, not data.tfds_name={name!r}")


def _not_found(folder: pathlib.Path, name: str) -> str:
    """Returns the message for a dataset that is not in the folder."""
    import tensorflow_datasets

    dataset, _ = _parse_name(name)
    files = folder.glob(f"{dataset}/**/dataset_info.json")
    others = sorted(str(file.parent.relative_to(folder)) for file in files)
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    message = f"data.tfds_name={name!r} is not in {folder}"
    if others:
        message += f", which has {', '.join(others)}"
    if dataset in known:
        build = f"tfds.builder({name!r}, data_dir={str(folder)!r}, file_format='array_record')"
        return (
            f"{message}; with tensorflow and importlib_resources installed, prepare it by: "
            f'python -c "import tensorflow_datasets as tfds; {build}.download_and_prepare()"'
        )
    if others:
        return message
    near = "".join(f"; did you mean {n!r}?" for n in difflib.get_close_matches(dataset, known, 1))
    return f"{message}, and tensorflow-datasets has no dataset of that name{near}"
