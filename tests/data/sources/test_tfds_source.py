"""Datasets that tensorflow-datasets has written, read where TensorFlow is not installed."""

import importlib.util
import json
import os
import pathlib
import random
import re
import threading

import pytest
import tensorflow_datasets
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2
from tfds_datasets import (
    CLASSES,
    IMAGES,
    ROOT,
    TEST,
    TRAIN,
    command_in,
    data_config,
    examples,
    run,
    shards,
)

from lbsgd.data.images.decode import CorruptError, decode
from lbsgd.data.sources.tfds import tfds, tfds_splits
from lbsgd.system.errors import ConfigError

HERE = pathlib.Path(__file__).parents[1]
TENSORFLOW = {"tensorflow", "tensorflow_cpu", "keras", "tensorboard", "tensorboard_data_server"}


def test_examples_are_those_that_were_written(written):
    splits = tfds(data_config(written / "data"))
    for source, ids in zip(splits, (range(TRAIN), range(TRAIN, TRAIN + TEST))):
        assert len(source) == len(ids)
        assert source.classes == CLASSES
        found = examples(source)
        assert sorted(IMAGES[image] for image, _ in found) == list(ids)
        assert all(label == IMAGES[image] % 3 for image, label in found)


@pytest.mark.parametrize(
    "split",
    ["train", "test", "train[:50%]", "train[7:23]", "train[-5:]", "test+train[4:6]", "all"],
)
def test_order_and_slices_are_those_of_tensorflow_datasets(written, split):
    """Of its own reader; the 30 examples are in 3 files."""
    builder = tensorflow_datasets.builder_from_directory(written / "data/pets/1.2.3")
    assert len(shards(written / "data/pets/1.2.3")) == 3
    decoders = {"image": tensorflow_datasets.decode.SkipDecoding()}
    expected = [(e["image"], e["label"]) for e in builder.as_data_source(split, decoders=decoders)]
    source = tfds(data_config(written / "data", train=split)).train
    assert expected
    assert examples(source) == expected


WITHOUT_TENSORFLOW = """
import json, os, sys
sys.path[:0] = {paths!r}


def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        os._exit(3)


sys.addaudithook(no_network)
try:
    import tensorflow
except ModuleNotFoundError:
    pass
else:
    sys.exit("tensorflow is there")
from lbsgd.run.config import default_config
from lbsgd.data.sources.tfds import tfds

config = default_config().data
config.dir, config.tfds_name = {directory!r}, "pets"
print(json.dumps([[[e.image.hex(), e.label] for e in map(s.__getitem__, range(len(s)))]
                  for s in tfds(config)]))
"""


def test_reads_where_tensorflow_is_not_installed(written, tmp_path):
    """Its path has all of site-packages but TensorFlow; it says nothing and asks no network."""
    packages = pathlib.Path(importlib.util.find_spec("tensorflow_datasets").origin).parents[1]
    for entry in packages.iterdir():
        if re.split("[-.]", entry.name)[0] not in TENSORFLOW:
            (tmp_path / entry.name).symlink_to(entry)
    directory = str(written / "data")
    code = WITHOUT_TENSORFLOW.format(paths=[str(ROOT), str(tmp_path)], directory=directory)
    done = run("-I", "-S", "-c", code)
    assert done.stderr == ""
    there = [[(bytes.fromhex(image), label) for image, label in s] for s in json.loads(done.stdout)]
    assert there == [examples(source) for source in tfds(data_config(directory))]


def test_tensorflow_is_not_imported_where_it_is_installed(written):
    """It would take seconds."""
    code = (
        "import sys, pathlib; from lbsgd.data.sources.tfds import tfds_splits\n"
        f"tfds_splits(pathlib.Path({str(written / 'data/pets/1.2.3')!r}))['train'][0]\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    assert run("-c", code).stderr == ""


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("data", "pets"),
        ("data", "pets:1.2.3"),
        ("data", "pets:1.*.*"),
        ("data/pets/1.2.3", "pets"),
        ("data/pets/1.2.3", "pets:1.2.3"),
    ],
)
def test_dataset_is_found(written, folder, name):
    assert len(tfds(data_config(written / folder, name)).train) == TRAIN


def test_default_directory_is_that_of_tensorflow_datasets(written, monkeypatch):
    monkeypatch.setattr(tensorflow_datasets.core.constants, "DATA_DIR", str(written / "data"))
    assert len(tfds(data_config("")).train) == TRAIN


def test_configs_and_the_validation_split(written):
    """Validation is "validation" where there is one, also if there is a test split."""
    splits = tfds(data_config(written / "data", "digits8/half"))
    assert (len(splits.train), len(splits.validation)) == (20, 5)
    assert splits.train.classes == ("0", "1", "2", "3")
    values = {int(decode(image)[0, 0, 0]) for image, _ in examples(splits.validation)}
    assert values == set(range(20, 25))
    held_out = tfds(data_config(written / "data", "digits8/half", validation="train[90%:]"))
    assert examples(held_out.validation) == examples(held_out.train)[18:]


@pytest.mark.parametrize("name", ["pets", "digits8/full"])
def test_image_shape_is_that_of_the_first_image_decoded(written, name):
    """Grey files too: the feature of digits8 has one channel."""
    for source in tfds(data_config(written / "data", name)):
        assert source.image_shape == decode(source[0].image).shape


def test_splits_of_a_version_folder(written):
    for folder, validation in (("pets/1.2.3", "test"), ("digits8/full/2.0.0", "validation")):
        splits = tfds_splits(written / "data" / folder)
        assert {key: source.split for key, source in splits.items()} == {
            "train": "train",
            "validation": validation,
        }
    assert tfds_splits(written / "data/alone/1.2.3").keys() == {"train"}


def test_name_leads_to_the_record(written):
    folder = written / "data/pets/1.2.3"
    source = tfds(data_config(folder, train="train[5:]")).train
    for index in range(len(source)):
        name = source.name(index)
        split, record, file = re.fullmatch(r"(.*), record (\d+) of (.*)", name).groups()
        assert split == f"train[5:][{index}]"
        record = ArrayRecordReader(str(folder / file)).read([int(record)])[0]
        assert source[index].image in record


@pytest.mark.parametrize("index", [-1, TRAIN, TRAIN + 100])
def test_index_out_of_range(written, index):
    source = tfds(data_config(written / "data")).train
    with pytest.raises(IndexError):
        source[index]


def test_threads_read_what_one_reads(written):
    source = tfds(data_config(written / "data", train="train+test")).train
    expected = examples(tfds(data_config(written / "data", train="train+test")).train)
    wrong: list[int] = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            index = draw.randrange(len(source))
            if tuple(source[index]) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_fingerprint_is_of_the_examples_and_not_of_the_path(written, pets):
    def fingerprint(*arguments, **splits):
        return tfds(data_config(*arguments, **splits)).train.fingerprint

    data = written / "data"
    assert fingerprint(data) == fingerprint(pets)
    others = [
        fingerprint(data),
        fingerprint(data, train="train[:20]"),
        fingerprint(data, train="test"),
        fingerprint(data, "digits8/full"),
        fingerprint(data, "digits8/half"),
    ]
    assert len(set(others)) == len(others)


OPEN_FILES = """
import os, pathlib, resource
from lbsgd.system.errors import ConfigError
from lbsgd.data.sources.tfds import TfdsSource, tfds_splits
import tensorflow_datasets

folder = {folder!r}
tfds_splits(pathlib.Path(folder))
soft = len(os.listdir("/proc/self/fd")) + 5
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft + {more}))
split = "+".join(f"train[{{i}}:{{i + 1}}]" for i in range(30))
source = TfdsSource(tensorflow_datasets.builder_from_directory(folder), split)
try:
    print(len([source[i] for i in range(30)]))
except ConfigError as error:
    print(error)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize(("more", "said"), [(100, "30\n"), (0, "Too many open files")])
def test_more_files_than_the_limit(written, more, said):
    """30 parts, each a file of its own, where 5 may be opened: it is raised if it can be."""
    folder = str(written / "data/pets/1.2.3")
    assert said in run("-c", OPEN_FILES.format(folder=folder, more=more)).stdout


def test_damaged_record_is_corrupt_and_others_are_not(pets):
    path = shards(pets)[1]
    source = tfds(data_config(pets)).train
    image = source[15].image
    damaged = path.read_bytes().replace(image[40:60], bytes(20))
    path.write_bytes(damaged)
    source = tfds(data_config(pets)).train
    for index in range(TRAIN):
        if index == 15:
            with pytest.raises(CorruptError):
                source[index]
            assert path.name in source.name(index)
        else:
            assert source[index].image in IMAGES


def test_records_of_a_file_cut_short_are_corrupt(pets):
    path = shards(pets)[1]
    path.write_bytes(path.read_bytes()[:-100])
    source = tfds(data_config(pets)).train
    for index in range(TRAIN):
        if 10 <= index < 20:
            with pytest.raises(CorruptError, match="records, not 10"):
                source[index]
        else:
            assert source[index].image in IMAGES


def record(image: list[bytes], label: list[int]) -> bytes:
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.extend(image)
    example.features.feature["label"].int64_list.value.extend(label)
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"\xff\xff", "not the record"),
        (b"", "not the record"),
        (record([b"image"], []), "not the record"),
        (record([], [1]), "not the record"),
        (record([b"image"], [3]), "label 3, of 3 classes"),
        (record([b"image"], [-1]), "label -1, of 3 classes"),
    ],
    ids=["no message", "empty", "no label", "no image", "label too high", "hidden label"],
)
def test_record_of_something_else_is_corrupt(pets, bad, message):
    """Also the first: the shape is that of the next."""
    path = shards(pets)[0]
    good = ArrayRecordReader(str(path)).read_all()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for content in (bad, *good[1:]):
        writer.write(content)
    writer.close()
    source = tfds(data_config(pets)).train
    with pytest.raises(CorruptError, match=message):
        source[0]
    assert source.image_shape == decode(source[1].image).shape


WRONG = [
    ("data", {"name": "pets!"}, r"tfds_name='pets!' must be of the form name"),
    ("data", {"name": ""}, "must be of the form name"),
    ("data", {"name": "petz"}, r"'petz' is not in .*, and tensorflow-datasets has no dataset"),
    ("data", {"name": "fashion_mnits"}, "did you mean 'fashion_mnist'"),
    ("nowhere", {"name": "petz"}, "is not in .*nowhere"),
    ("data", {"name": "words:9.9.9"}, r"is not in .*, which has words/1\.2\.3$"),
    ("data", {"name": "pets:9.9.9"}, r"is not in .*, which has pets/1\.2\.3; with tensorflow"),
    ("data", {"name": "digits8/third"}, "which has digits8/full/2.0.0, digits8/half/2.0.0$"),
    ("data/pets/1.2.3", {"name": "digits8"}, r"holds pets/1\.2\.3, not .*'digits8'"),
    ("data/pets/1.2.3", {"name": "pets:2.0.0"}, r"holds pets/1\.2\.3, not"),
    ("data/digits8/half/2.0.0", {"name": "digits8/full"}, r"holds digits8/half/2\.0\.0, not"),
    (
        "data",
        {"train": "trian"},
        r"data\.tfds_train='trian' is not a split of pets/1\.2\.3: Unknown split.* train \(30 "
        r"examples\), test \(10 examples\)",
    ),
    ("data", {"train": "train[:50"}, "tfds_train='train.:50' is not a split"),
    ("data", {"validation": "validation"}, "data.tfds_validation='validation' is not a split"),
    ("data", {"train": "train[:1%]"}, "it has no examples"),
    ("data", {"train": "train[20:40]"}, "tfds_train='train.20:40.' is not a split"),
    ("data", {"name": "alone"}, "neither a validation nor a test split; set data.tfds_validation"),
    ("data", {"name": "digits8/full", "validation": "test"}, "label -1, of 4 classes"),
    (
        "data",
        {"name": "words", "validation": "train"},
        r"words/1\.2\.3 has no 8-bit image with a class label; .* text \(Text\)",
    ),
    ("data", {"name": "depths", "validation": "train"}, "depths/1.2.3 has no 8-bit image"),
]


@pytest.mark.parametrize(("folder", "keys", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line(written, folder, keys, message):
    with pytest.raises(ConfigError, match=message) as caught:
        tfds(data_config(written / folder, **keys))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_info.json", "{"),
        ("dataset_info.json", "{}"),
        ("features.json", "{"),
        ("features.json", None),
        ("dataset_info.json", None),
    ],
)
def test_folder_without_what_belongs_there(pets, file, content):
    (pets / file).unlink()
    if content is not None:
        (pets / file).write_text(content)
    with pytest.raises(ConfigError, match="holds no dataset that can be read") as caught:
        tfds_splits(pets)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(pets):
    path = shards(pets)[2]
    path.unlink()
    with pytest.raises(ConfigError, match=rf"{path.name} is missing; prepare pets/1\.2\.3 again"):
        tfds(data_config(pets))


def test_other_formats_are_named(pets):
    file = pets / "dataset_info.json"
    file.write_text(file.read_text().replace('"array_record"', '"riegeli"'))
    with pytest.raises(ConfigError, match="has riegeli files; prepare the dataset in another"):
        tfds(data_config(pets))


def test_command_in_the_message_prepares(written, tmp_path):
    """For a dataset that tensorflow-datasets knows."""
    with pytest.raises(ConfigError, match="tensorflow and importlib_resources") as caught:
        tfds(data_config(tmp_path, "pets:1.2.3"))
    _, flag, code = command_in(caught.value)
    assert flag == "-c"
    run("-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); import tfds_datasets; {code}")
    for ours, theirs in zip(tfds(data_config(tmp_path)), tfds(data_config(written / "data"))):
        assert examples(ours) == examples(theirs)
