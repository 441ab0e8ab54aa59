"""Some of the classes of a set: which examples, what they are numbered, and what is said."""

import image_files
import numpy as np
import preparing
import pytest
import tfds_datasets

from lbsgd.data.facts import facts_of, given_facts
from lbsgd.data.source import Splits
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.run.config import default_config, run_keys
from lbsgd.system.errors import ConfigError

DIGITS = "0123456789"


def opened(*only: str, seed: int = 0, **keys: object) -> Splits:
    config = default_config().data
    config.only_classes = only
    config.update(keys)
    return build_sources(config, seed)


def contents(source) -> list[tuple[bytes, str]]:
    """Images, and their classes by name."""
    return [
        (bytes(x.image), source.classes[x.label])
        for x in map(source.__getitem__, range(len(source)))
    ]


@pytest.mark.parametrize(
    ("only", "those"),
    [
        (("0-4",), "01234"),
        (("5-9",), "56789"),
        (("7", "2"), "27"),
        (("3-3", "8", "2-4"), "2348"),
        (("0-9",), DIGITS),
    ],
)
def test_the_examples_of_these_classes_are_used_in_their_order(only, those):
    for whole, part in zip(opened(), opened(*only)):
        assert part.classes == tuple(those)
        assert contents(part) == [pair for pair in contents(whole) if pair[1] in those]
        labels = [part[i].label for i in range(len(part))]
        assert set(labels) == set(range(len(those)))
        assert part.labels.tolist() == labels
        assert part.image_shape == whole.image_shape
        names = {whole.name(i) for i in range(len(whole))}
        assert {part.name(i) for i in range(len(part))} <= names


def test_it_is_said_once():
    train, validation = opened("0-2")
    assert train.notes == ("3 of 10 classes are used: 0, 1, 2",)
    assert validation.notes == ()


def test_other_classes_are_another_training_set():
    prints = {opened(*only).train.fingerprint for only in [(), ("0-4",), ("0-5",), ("0-9",)]}
    assert len(prints) == 4
    assert opened("0-2").train.fingerprint == opened("2", "0", "1").train.fingerprint
    config = default_config()
    config.data.only_classes = ("0-4",)
    assert run_keys(config)["data.only_classes"] == ["0-4"]


def test_a_class_without_examples_makes_another_training_set_too(tmp_path):
    """The network has an output for it."""
    images, labels = np.zeros((6, 4, 4, 1), np.uint8), np.array([0, 1, 3] * 2)
    for name in ("train", "validation"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    keys = {"source": "npz", "dir": str(tmp_path)}
    two, three = (opened(only, **keys).train for only in ("0-1", "0-2"))
    assert contents(two) == contents(three)
    assert two.fingerprint != three.fingerprint


def test_fewer_examples_are_of_these_classes():
    part, fewer = opened("0-4"), opened("0-4", train_examples=100, left_out="validation")
    assert len(fewer.train) == 100
    assert set(contents(fewer.train)) < set(contents(part.train))
    assert len(fewer.train) + len(fewer.validation) == len(part.train) + len(part.validation)
    assert np.bincount(fewer.validation.labels).sum() == len(fewer.validation)


def test_a_part_is_held_out_of_these_classes(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 4, 4, 1), np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    keys = {"source": "npz", "dir": str(tmp_path), "validation_fraction": 0.4}
    for whole, part in zip(opened(**keys), opened("0", "2", **keys)):
        assert contents(part) == [pair for pair in contents(whole) if pair[1] != "1"]


# --- of every source -------------------------------------------------------------------------


def test_of_folders_a_name_counts_before_a_range(tmp_path):
    classes = ("0-1", "cat", "dog")
    files = image_files.tree(3, classes)
    image_files.write(tmp_path, image_files.below("train", files) | image_files.below("val", files))
    keys = {"source": "folder", "dir": str(tmp_path), "crop": "inception"}
    assert opened("0-1", "dog", **keys).train.classes == ("0-1", "dog")
    part, whole = opened("1-2", **keys).train, opened(**keys).train
    assert part.classes == ("cat", "dog")
    assert contents(part) == [pair for pair in contents(whole) if pair[1] != "0-1"]


def test_of_a_packed_set(tmp_path):
    files = image_files.tree(3, ("a", "b", "c"))
    members = image_files.below("train", files) | image_files.below("val", files)
    archive = image_files.write_zip(tmp_path / "set.zip", members)
    assert preparing.run(archive, tmp_path / "packed") == 0
    keys = {"source": "packed", "dir": str(tmp_path / "packed"), "crop": "inception"}
    whole = opened(**keys).train
    assert contents(opened("c", "a", **keys).train) == [x for x in contents(whole) if x[1] != "b"]


def test_of_synthetic_images():
    keys = {"source": "synthetic", "synthetic_classes": 5, "synthetic_examples": 40}
    keys |= {"synthetic_validation_examples": 30, "image_size": 4}
    whole, part = opened(**keys).train, opened("1-3", **keys).train
    assert contents(part) == [pair for pair in contents(whole) if pair[1] in "123"]


@pytest.mark.long
def test_of_tensorflow_datasets(pets):
    config = tfds_datasets.data_config(pets)
    whole = build_sources(config)
    config.only_classes = whole.train.classes[1:3]
    for before, part in zip(whole, build_sources(config)):
        assert contents(part) == [x for x in contents(before) if x[1] in config.only_classes]


# --- planning, mistakes ----------------------------------------------------------------------


def test_what_is_not_known_without_the_data_is_asked_for():
    config = default_config().data
    assert given_facts(config).classes == 10
    config.only_classes = ("0-4",)
    assert given_facts(config) is None
    facts = facts_of(build_sources(config))
    config.update({"examples": 700, "validation_examples": 180, "classes": 5})
    given = given_facts(config)
    assert (given.examples, given.validation_examples, given.classes) == (700, 180, 5)
    assert (given.image_shape, given.classes) == (facts.image_shape, facts.classes)


@pytest.mark.parametrize(
    ("only", "says"),
    [
        (("eight",), "data.only_classes: the data have no class 'eight'; the nearest is"),
        (("4-10",), "'4-10' is no range of the labels, which are 0 to 9"),
        (("4-2",), "'4-2' is no range of the labels"),
        (("3",), "training images are of a single class, 3"),
    ],
)
def test_mistakes_end_in_one_line(only, says):
    with pytest.raises(ConfigError, match=says) as error:
        opened(*only)
    assert "\n" not in str(error.value)


def test_classes_without_examples_to_validate_on_are_a_mistake(tmp_path):
    images, labels = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "validation.npz", images=images[:1], labels=labels[:1])
    with pytest.raises(ConfigError, match="of 1, 2 there are no validation examples"):
        opened("1-2", source="npz", dir=str(tmp_path))
