"""Fewer training examples: which, and that nothing else changes."""

import numpy as np
import pytest
from scipy import stats

from lbsgd.data.facts import given_facts
from lbsgd.data.source import Splits
from lbsgd.data.sources.catalogue import build_sources
from lbsgd.run.config import default_config, run_keys
from lbsgd.system.errors import ConfigError

DIGITS, VALIDATION = 1437, 360


def opened(count: int, seed: int = 0, **keys: object) -> Splits:
    config = default_config().data
    config.train_examples = count
    config.update(keys)
    return build_sources(config, seed)


def images(source) -> list[bytes]:
    return [source[i].image.tobytes() + bytes([source[i].label]) for i in range(len(source))]


@pytest.mark.parametrize("count", [1, 2, 100, 1436, DIGITS])
def test_so_many_are_used_each_once_and_in_order(count):
    whole, fewer = opened(0).train, opened(count).train
    assert len(fewer) == count
    names = [fewer.name(i) for i in range(count)]
    places = [int(name.split()[1]) for name in names]
    assert places == sorted(set(places))
    every = images(whole)
    assert images(fewer) == [every[place] for place in places]
    assert fewer.notes[-1] == f"{count:,} of 1,437 images are used"


def test_fewer_are_a_part_of_more():
    few, more = (set(images(opened(count).train)) for count in (150, 400))
    assert few < more


def test_the_seed_and_the_validation_set_have_nothing_to_do_with_it():
    one, other = opened(200, seed=0), opened(200, seed=7)
    assert one.train.fingerprint == other.train.fingerprint
    assert one.validation.fingerprint == opened(0).validation.fingerprint
    assert len(one.validation) == VALIDATION


def test_another_number_is_another_training_set():
    """A checkpoint of one is not resumed with the other."""
    prints = {opened(count).train.fingerprint for count in (0, 200, 201)}
    assert len(prints) == 3
    config = default_config()
    config.data.train_examples = 200
    assert run_keys(config)["data.train_examples"] == 200


def test_classes_have_the_share_that_chance_gives_them():
    whole, fewer = opened(0).train, opened(400).train
    labels = [
        np.bincount([s[i].label for i in range(len(s))], minlength=10) for s in (whole, fewer)
    ]
    for all_, taken in zip(*labels, strict=True):
        low, high = stats.hypergeom.interval(1 - 1e-4, DIGITS, all_, 400)
        assert low <= taken <= high


def test_the_others_can_be_validated_on():
    whole = opened(0)
    fewer = opened(400, left_out="validation")
    kept, joined = set(images(fewer.train)), images(fewer.validation)
    assert joined == images(whole.validation) + [x for x in images(whole.train) if x not in kept]
    assert len(joined) == VALIDATION + DIGITS - 400
    assert fewer.validation.name(VALIDATION - 1) == whole.validation.name(VALIDATION - 1)
    assert fewer.validation.fingerprint != whole.validation.fingerprint
    assert "400 of 1,437 images are used, the other 1,037 to validate on" in fewer.train.notes
    assert opened(DIGITS, left_out="validation").validation.fingerprint == (
        whole.validation.fingerprint
    )


@pytest.mark.parametrize("left_out", ["unused", "validation"])
def test_a_plan_without_the_digits_knows_how_many(left_out):
    config = default_config().data
    config.update({"train_examples": 300, "left_out": left_out})
    given, found = given_facts(config), opened(300, left_out=left_out)
    assert (given.examples, given.validation_examples) == tuple(map(len, found))


def test_they_are_taken_of_what_is_not_held_out(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "train.npz", images=pixels, labels=np.arange(60) % 3)
    keys = {"source": "npz", "dir": str(tmp_path), "validation_fraction": 0.4}
    whole, fewer = opened(0, **keys), opened(10, **keys)
    assert set(images(fewer.train)) < set(images(whole.train))
    assert images(fewer.validation) == images(whole.validation)


def test_of_a_set_in_order_of_its_classes_each_has_its_share(tmp_path):
    pixels, labels = np.zeros((600, 4, 4, 1), np.uint8), np.arange(600) // 200
    np.savez(tmp_path / "train.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "validation.npz", images=pixels[:3], labels=np.arange(3))
    fewer = opened(300, source="npz", dir=str(tmp_path)).train
    taken = np.bincount([fewer[i].label for i in range(300)], minlength=3)
    low, high = stats.hypergeom.interval(1 - 1e-4, 600, 200, 300)
    assert all(low <= count <= high for count in taken)


def test_more_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"train_examples=1438, but there are 1437; set it to"):
        opened(DIGITS + 1)


def test_a_plan_without_the_data_knows_how_many():
    config = default_config().data
    config.update({"source": "tfds", "crop": "inception", "train_examples": 1000})
    assert given_facts(config).examples == 1000
