"""What is held out for validation, against the rule computed by hand."""

import hashlib
import math
import pathlib
import shutil

import numpy as np
import pytest
from image_files import CLASSES, below, contents, encoded, picture, tree, write
from test_fuzz_inputs import refusal

from lbsgd.data.sources.catalogue import build_sources
from lbsgd.data.sources.folder import FolderSource
from lbsgd.data.sources.held_out import is_held_out
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve, run_keys

FRACTION = 0.3
IMAGES = tree(10)


def data_config(root: pathlib.Path, source: str = "folder", fraction: float = FRACTION):
    config = default_config().data
    config.update({"source": source, "dir": str(root), "crop": "inception"})
    config.validation_fraction = fraction
    return config


def by_hand(names, fraction: float = FRACTION, seed: int = 0) -> list[str]:
    """Those of the names that are held out."""
    found = []
    for name in names:
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).hexdigest()
        if int(digest, 16) / 16**16 < fraction:
            found.append(name)
    return found


def named(source) -> list[str]:
    """Paths of the examples below the folder of the classes."""
    return [source.name(i).split("/", 1)[1] for i in range(len(source))]


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    return write(tmp_path / "images", IMAGES)


@pytest.mark.parametrize("layout", ["", "train"])
@pytest.mark.parametrize("seed", [0, 7])
def test_held_out_is_what_the_rule_says(images, tmp_path, layout, seed):
    """Of class folders directly, or in train/ alone; all else is trained on."""
    if layout:
        images.rename(tmp_path / "train")
        images = tmp_path
    splits = build_sources(data_config(images), seed)
    expected = by_hand(sorted(IMAGES), seed=seed)
    assert 0 < len(expected) < 30
    assert named(splits.validation) == expected
    assert named(splits.train) == [name for name in sorted(IMAGES) if name not in expected]
    assert splits.train.classes == splits.validation.classes == CLASSES
    for split in splits:
        for (image, name), path in zip(contents(split), named(split)):
            assert (image, name) == (IMAGES[path], path.split("/")[0])
    assert splits.validation.notes == (
        f"{len(expected)} of 30 images are held out, to validate on",
    )


def test_files_that_are_added_or_removed_move_no_other(images):
    before = set(named(build_sources(data_config(images)).validation))
    write(images, {"ant/1.jpg": encoded(picture(1)), "cat/00.jpg": encoded(picture(2))})
    (images / "dog/3.jpg").unlink()
    after = set(named(build_sources(data_config(images)).validation))
    assert after - {"ant/1.jpg", "cat/00.jpg"} == before - {"dog/3.jpg"}


def test_larger_fraction_holds_out_the_same_and_more(images):
    parts = [
        set(named(build_sources(data_config(images, fraction=fraction)).validation))
        for fraction in (0.1, 0.3, 0.6)
    ]
    assert parts[0] < parts[1] < parts[2]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_share_is_the_fraction(fraction):
    """Within five standard deviations of the binomial distribution, for any seed."""
    count = 20_000
    for seed in (0, 1, 2**32 - 1):
        held = sum(is_held_out(f"cat/{i}.jpg".encode(), fraction, seed) for i in range(count))
        assert abs(held - count * fraction) < 5 * math.sqrt(count * fraction * (1 - fraction))


def test_arrays_are_held_out_by_their_numbers(tmp_path):
    pixels = np.arange(40 * 12, dtype=np.uint8).reshape(40, 2, 2, 3)
    np.savez(tmp_path / "train.npz", images=pixels, labels=np.arange(40) % 4)
    splits = build_sources(data_config(tmp_path, "npz"), 5)
    held = [int(name) for name in by_hand(map(str, range(40)), seed=5)]
    kept = [i for i in range(40) if i not in held]
    for split, indices in zip(splits, (kept, held)):
        assert len(split) == len(indices)
        for i, index in enumerate(indices):
            np.testing.assert_array_equal(split[i].image, pixels[index])
            assert split[i].label == index % 4


def test_class_of_which_all_is_held_out_is_told(tmp_path):
    alone = by_hand([f"owl/{i}.jpg" for i in range(100)])[0]
    write(tmp_path, tree(10, CLASSES[:2]) | {alone: encoded(picture(1))})
    train = build_sources(data_config(tmp_path)).train
    assert train.classes == CLASSES
    assert "no examples of 1 of the 3 classes: owl" in train.notes


def test_fingerprints_differ_where_what_is_held_out_does(images):
    found = {
        split.fingerprint
        for seed in (0, 1)
        for fraction in (0.2, 0.5)
        for split in build_sources(data_config(images, fraction=fraction), seed)
    }
    assert len(found) == 8
    elsewhere = shutil.copytree(images, images.with_name("elsewhere"))
    ours, theirs = (build_sources(data_config(root)) for root in (images, elsewhere))
    assert [s.fingerprint for s in ours] == [s.fingerprint for s in theirs]


def test_seed_of_the_run_is_that_of_what_is_held_out(images):
    config = default_config()
    config.data.update(data_config(images))
    config.update({"seed": 3, "total_steps": 2, "batch_size": 8, "worker_batch_size": 4})
    config.model.update({"name": "cifar_resnet20", "width": 0.25})
    config.data.update({"image_size": 16, "crop": "inception"})
    config.learning_rate.warmup = "none"
    run = build(resolve(config))
    assert named(run.feed.splits.validation) == by_hand(sorted(IMAGES), seed=3)
    assert run_keys(config)["data.validation_fraction"] == FRACTION


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_fraction_and_a_validation_folder_exclude_each_other(images, tmp_path, name):
    images.rename(tmp_path / "train")
    write(tmp_path, below(name, tree(1)))
    line = refusal(lambda: build_sources(data_config(tmp_path)))
    assert f"data.validation_fraction=0.3, but {tmp_path / name} is there; set it to 0" in line
    assert len(build_sources(data_config(tmp_path / "train")).train) < 30


def test_fraction_and_validation_arrays_exclude_each_other(tmp_path):
    for name in ("train", "validation"):
        images = np.zeros((4, 2, 2, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(4))
    assert "validation.npz is there" in refusal(lambda: build_sources(data_config(tmp_path, "npz")))


@pytest.mark.parametrize("source", ["digits", "synthetic"])
def test_fraction_is_nothing_to_sources_that_have_a_validation_set(tmp_path, source):
    held, whole = (build_sources(data_config(tmp_path, source, f)) for f in (FRACTION, 0.0))
    assert [s.fingerprint for s in held] == [s.fingerprint for s in whole]


@pytest.mark.parametrize(
    ("fraction", "says"), [(1e-9, "of 30 images none is held out"), (1 - 1e-9, "none is left to")]
)
def test_fraction_that_leaves_nothing_is_an_error(images, fraction, says):
    assert says in refusal(lambda: build_sources(data_config(images, fraction=fraction)))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_fraction_is_one(fraction):
    config = default_config()
    config.data.validation_fraction = fraction
    assert "data.validation_fraction must be" in refusal(lambda: resolve(config))


@pytest.mark.parametrize("layout", ["", "train"])
def test_folder_without_validation_is_told_of_the_key(images, tmp_path, layout):
    if layout:
        images.rename(tmp_path / "train")
        images = tmp_path
    line = refusal(lambda: build_sources(data_config(images, fraction=0.0)))
    assert "data.validation_fraction=0.1 holds out a part of one folder" in line
    assert len(FolderSource(images / layout)) == 30
