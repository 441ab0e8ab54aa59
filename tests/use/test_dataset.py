"""Classes are matched by name, numbered ones by number, and others are refused."""

import pathlib
import shutil

import ml_collections
import numpy as np
import pytest

from lbsgd.data.sources.folder import FolderSource
from lbsgd.data.sources.held_out import hold_out
from lbsgd.data.sources.unseen import open_unseen
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError
from lbsgd.use.dataset import Relabelled, match_classes

OURS = ("cat", "dog", "pin\u0303a", "3")


@pytest.mark.parametrize(
    ("theirs", "labels", "by_number"),
    [
        (OURS, [0, 1, 2, 3], False),
        (("3", "cat"), [3, 0], False),
        (("pi\u00f1a",), [2], False),  # the same letters in Unicode's other form
        (("0", "1", "2"), [0, 1, 2], True),
        (("0", "1", "2", "3"), [0, 1, 2, 3], True),
    ],
)
def test_classes_are_matched(theirs, labels, by_number):
    found, note = match_classes(theirs, OURS)
    assert found.tolist() == labels
    assert ("matched by number, 0 with 'cat'" in note) == by_number


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (("cat", "dgo"), "a class 'dgo', which the network does not know; .* is 'dog'"),
        (("0", "1", "2", "3", "4"), "a class '0'"),  # one more than there are
        (("1", "2"), "a class '1'"),  # no numbering from 0 on
    ],
)
def test_unknown_classes_are_refused(theirs, says):
    with pytest.raises(ConfigError, match=says):
        match_classes(theirs, OURS)


def data(folder: pathlib.Path, **keys) -> ml_collections.ConfigDict:
    config = default_config().data
    config.update({"source": "folder", "dir": str(folder), **keys})
    return config


def opened(config, given=("source", "dir"), **more):
    return open_unseen(config, 0, classes=tuple("0123456789"), given=given, **more)


def names(source) -> list[str]:
    return [source.name(i).split("/", 1)[1] for i in range(len(source))]


@pytest.fixture
def split(files, tmp_path):
    """The files as a validation set, with and without one to train on."""
    shutil.copytree(files, tmp_path / "alone" / "val")
    shutil.copytree(files, tmp_path / "both" / "test")
    shutil.copytree(files, tmp_path / "both" / "train")
    return tmp_path


def test_a_folder_of_classes_needs_no_splits(files, split):
    plain = opened(data(files))
    assert names(plain) == sorted(str(p.relative_to(files)) for p in files.glob("*/*"))
    assert plain.classes == tuple("0123456789")
    assert {plain[i].label for i in range(len(plain))} == {0, 3, 7}
    for folder in ("alone", "both"):
        source = opened(data(split / folder))
        assert names(source) == names(plain)
        # As its own classes are numbered; those of the network are found by name.
        labels, _ = match_classes(source.classes, tuple("0123456789"))
        relabelled = Relabelled(source, labels, tuple("0123456789"))
        found = [relabelled[i].label for i in range(len(source))]
        assert found == [plain[i].label for i in range(len(plain))]
        assert relabelled.labels.tolist() == found
        assert relabelled.name(0) == source.name(0)
        assert relabelled.fingerprint == source.fingerprint


def test_a_part_that_was_held_out_is_of_the_run_s_own_images_alone(files):
    """Others are taken whole, whatever part of its own the run held out."""
    config = data(files, validation_fraction=0.4)
    own = open_unseen(config, 0, classes=("0", "3", "7"))
    assert 0 < len(own) < len(FolderSource(files))
    # Where it lies now has another name, but the same images.
    training = FolderSource(files)
    trained_on = hold_out(training, 0.4, 0).train.fingerprint
    assert names(opened(config, trained_on=trained_on)) == names(own)
    assert len(opened(config, trained_on="another")) == len(training)
    given = ("source", "dir", "validation_fraction")
    assert names(opened(config, given=given, trained_on="another")) == names(own)


def test_arrays_need_no_training_set(tmp_path):
    images = np.zeros((3, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "validation.npz", images=images, labels=np.array([9, 0, 0]))
    source = opened(data(tmp_path, source="npz"))
    assert [source[i].label for i in range(3)] == [9, 0, 0]
    assert source.classes == tuple("0123456789")


def test_an_unknown_class_of_a_folder_is_named(files, tmp_path):
    shutil.copytree(files, tmp_path / "x")
    (tmp_path / "x" / "7").rename(tmp_path / "x" / "seven")
    with pytest.raises(ConfigError, match="a class 'seven'"):
        opened(data(tmp_path / "x"))
