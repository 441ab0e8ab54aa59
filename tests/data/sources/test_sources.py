"""Sources: what they hold, and what they say when it is not there."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from lbsgd.data.sources.catalogue import SOURCES, build_sources
from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError


def data_config(**keys) -> ConfigDict:
    config = default_config().data
    config.update(keys)
    return config


def examples(source):
    """Images and labels of a whole source, one index after the other."""
    pairs = [source[i] for i in range(len(source))]
    return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])


def arrays(count: int = 6, **changes) -> dict[str, np.ndarray]:
    """A good `.npz`: grey 4x5 images, labels 0, 1, 2, 0, 1, 2."""
    images = np.random.default_rng(count).integers(0, 256, (count, 4, 5), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count) % 3, **changes}


def write(folder, train=None, validation=None) -> ConfigDict:
    np.savez(folder / "train.npz", **(arrays() if train is None else train))
    np.savez(folder / "validation.npz", **(arrays(4) if validation is None else validation))
    return data_config(source="npz", dir=str(folder))


@pytest.fixture(scope="module")
def digits():
    return build_sources(data_config(source="digits"))


def test_digits_are_of_the_form_they_say(digits):
    assert (len(digits.train), len(digits.validation)) == (1437, 360)
    for split in digits:
        images, labels = examples(split)
        assert images.shape == (len(split), 8, 8, 1)
        assert images.dtype == np.uint8
        assert split.image_shape == (8, 8, 1)
        assert split.classes == tuple("0123456789")
        assert set(labels) == set(range(10))


def test_digits_are_all_there_and_none_is_in_both(digits):
    """Example i of scikit-learn, 0 to 16 in 64 pixels, is for validation where 5 divides i."""
    images, labels = load_digits(return_X_y=True)
    validation = np.arange(1797) % 5 == 0
    for split, mask in ((digits.train, ~validation), (digits.validation, validation)):
        our_images, our_labels = examples(split)
        sixteenths = np.round(our_images.reshape(-1, 64) * (16 / 255))
        np.testing.assert_array_equal(sixteenths, images[mask])
        np.testing.assert_array_equal(our_labels, labels[mask])
        assert our_images.max() == 255


def test_npz_is_what_was_saved(tmp_path):
    splits = build_sources(write(tmp_path))
    for split, saved in zip(splits, (arrays(), arrays(4))):
        images, labels = examples(split)
        np.testing.assert_array_equal(images, saved["images"][..., None])
        np.testing.assert_array_equal(labels, saved["labels"])
        assert (len(split.classes), split.image_shape) == (3, (4, 5, 1))


def test_npz_of_colour_images(tmp_path):
    images = np.zeros((6, 4, 5, 3), np.uint8)
    splits = build_sources(write(tmp_path, arrays(images=images), arrays(images=images)))
    assert splits.train.image_shape == splits.validation.image_shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((6, 4, 5), np.float32)}, r"must be uint8 .*, not float32 \(6, 4, 5"),
        ({"images": np.zeros((6, 4), np.uint8)}, r"must be uint8 \[N, h, w, c\], not uint8 \(6, 4"),
        ({"labels": np.arange(5)}, r"labels must be \[N\], .* of the 6 images, not int64 \(5,\)"),
        ({"labels": np.eye(6)[None]}, r"labels must be .*, not float64 \(1, 6, 6\)"),
        ({"labels": np.array(["cat"] * 6)}, "labels must be numbers, not <U3; number the classes"),
        ({"labels": np.arange(6) / 2}, "labels must be whole numbers"),
        ({"labels": np.full(6, np.nan)}, "labels must be whole numbers"),
        ({"labels": np.full((6, 3), 1 / 3)}, r"must be one-hot, a single 1 in each row; row 0 is"),
        (
            {"labels": np.eye(6) + np.eye(6, k=-4)},
            r"labels \(6, 6\) must be one-hot.*; row 4 is not",
        ),
        ({"labels": np.eye(6) - np.eye(6, k=1)}, "one-hot, a single 1 in each row; row 0 is not"),
        ({"labels": np.eye(6, 5)}, "one-hot, a single 1 in each row; row 5 is not"),
        ({"labels": np.arange(-1, 5)}, "labels must not be negative"),
        ({"images": np.zeros((0, 4, 5), np.uint8), "labels": np.zeros(0, int)}, "holds no"),
        ({"images": np.array([None] * 6)}, "must be an npz file of arrays `images` and `labels`"),
    ],
)
@pytest.mark.parametrize("name", ["train", "validation"])
def test_npz_with_wrong_arrays_is_an_error(tmp_path, name, changes, message):
    config = write(tmp_path, **{name: arrays(**changes)})
    with pytest.raises(ConfigError, match=f"{name}.npz.*{message}"):
        build_sources(config)


@pytest.mark.parametrize("key", ["images", "labels"])
def test_npz_without_an_array_is_an_error(tmp_path, key):
    held = arrays()
    del held[key]
    config = write(tmp_path, validation=held)
    with pytest.raises(ConfigError, match=f"validation.npz must be an npz file of arrays .*{key}"):
        build_sources(config)


@pytest.mark.parametrize("name", ["train", "validation"])
def test_npz_that_is_missing_is_an_error(tmp_path, name):
    config = write(tmp_path)
    (tmp_path / f"{name}.npz").unlink()
    with pytest.raises(ConfigError, match=f"cannot read .*{name}.npz .*No such file.*set data.dir"):
        build_sources(config)


def _as_npy(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("images, labels"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        _as_npy,
    ],
    ids=["text", "empty", "cut short", "npy"],
)
def test_npz_that_is_no_npz_is_an_error(tmp_path, damage):
    config = write(tmp_path)
    damage(tmp_path / "train.npz")
    with pytest.raises(ConfigError, match=r"train\.npz"):
        build_sources(config)


def test_npz_with_an_unknown_validation_label_is_an_error(tmp_path):
    config = write(tmp_path, validation=arrays(labels=np.array([0, 1, 2, 0, 1, 3])))
    with pytest.raises(ConfigError, match=r"validation.npz has a label 3, the training split only"):
        build_sources(config)


FORMS = {
    "[N]": lambda y: y,
    "[N, 1]": lambda y: y[:, None],
    "one-hot": lambda y: np.eye(3)[y],
    "one-hot, integers": lambda y: np.eye(3, dtype=np.uint8)[y],
    "one-hot, true and false": lambda y: np.eye(3, dtype=bool)[y],
    "floats": lambda y: y.astype(np.float32),
    "floats [N, 1]": lambda y: y[:, None] * 1.0,
    "unsigned": lambda y: y.astype(np.uint64),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_taken_in_each_form(tmp_path, form):
    labels = np.array([2, 0, 1, 1, 2, 0])
    config = write(tmp_path, arrays(labels=FORMS[form](labels)), arrays(labels=labels))
    for split in build_sources(config):
        assert examples(split)[1].tolist() == labels.tolist()
        assert split.classes == ("0", "1", "2")
        assert split.notes == ()


NUMBERS = "the network has an output for each, so number them 0, 1, 2, ..."
NOTED = {
    "from 1": (np.arange(6) % 3 + 1, 4, f"labels start at 1, not at 0; no examples of 1 of the 4 "
               f"classes: 0; {NUMBERS}"),
    "sparse": (np.arange(6) % 2 * 100, 101, "no examples of 99 of the 101 classes: 1, 2, 3, 4, 5, "
               f"6, 7, 8 and 91 more; {NUMBERS}"),
    "one-hot, never used": (np.eye(3)[[0, 2] * 3], 3, f"no examples of 1 of the 3 classes: 1; "
                            f"{NUMBERS}"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTED)
def test_classes_that_no_label_has_are_told(tmp_path, name):
    labels, classes, note = NOTED[name]
    splits = build_sources(write(tmp_path, arrays(labels=labels), arrays(labels=labels)))
    assert len(splits.train.classes) == classes
    assert splits.train.notes == (note,)
    (line,) = splits.validation.notes
    assert note.removesuffix(f"; {NUMBERS}").endswith(line)


def test_labels_of_both_splits_are_of_the_same_numbers(tmp_path):
    from_one = arrays(labels=np.arange(6) % 2 + 1)
    with pytest.raises(ConfigError, match=r"validation.npz has the label 0, which train.npz never"):
        build_sources(write(tmp_path, from_one, arrays(labels=np.arange(6) % 3)))
    one_hot = [arrays(labels=np.eye(width)[np.arange(6) % 2]) for width in (3, 5)]
    with pytest.raises(ConfigError, match="one-hot of 5 classes, the training split has 3"):
        build_sources(write(tmp_path, *one_hot))


@pytest.mark.parametrize("label", [0, 3])
def test_a_single_class_cannot_be_learned(tmp_path, label):
    one = arrays(labels=np.full(6, label))
    with pytest.raises(ConfigError, match=f"train.npz has only the label {label}; nothing can be"):
        build_sources(write(tmp_path, one, one))
    with pytest.raises(ConfigError, match="of a single class, 0; nothing can be learned"):
        build_sources(data_config(source="synthetic", synthetic_classes=1))


def test_npz_with_images_of_two_shapes_is_an_error(tmp_path):
    config = write(tmp_path, validation=arrays(images=np.zeros((6, 5, 4), np.uint8)))
    with pytest.raises(ConfigError, match=r"train.npz and validation.npz differ in shape"):
        build_sources(config)


SYNTHETIC = {
    "source": "synthetic",
    "image_size": 6,
    "synthetic_classes": 7,
    "synthetic_examples": 500,
    "synthetic_validation_examples": 80,
}


def test_synthetic_examples_are_of_the_form_asked_for():
    splits = build_sources(data_config(**SYNTHETIC))
    assert (len(splits.train), len(splits.validation)) == (500, 80)
    for split in splits:
        images, labels = examples(split)
        assert images.shape == (len(split), 6, 6, 3)
        assert images.dtype == np.uint8
        assert (len(split.classes), split.image_shape) == (7, (6, 6, 3))
        assert set(labels) == set(range(7))


def test_synthetic_examples_are_the_same_each_time_and_in_any_sequence():
    here, there = (build_sources(data_config(**SYNTHETIC)) for _ in range(2))
    for split, again in zip(here, there):
        images, labels = examples(split)
        for i in (79, 3, 3, 0):
            np.testing.assert_array_equal(again[i].image, images[i])
            assert again[i].label == labels[i]


def test_no_two_synthetic_examples_are_alike():
    """Of 108 random bytes each; nor is one of validation in training."""
    splits = build_sources(data_config(**SYNTHETIC))
    images = {split[i].image.tobytes() for split in splits for i in range(len(split))}
    assert len(images) == 580


def test_unknown_source_names_the_known():
    with pytest.raises(ConfigError, match=r"unknown data\.source 'imagenot'") as error:
        build_sources(data_config(source="imagenot"))
    known = str(error.value).split("known: ")[1].split(", ")
    assert known == list(SOURCES)
    assert {"digits", "npz", "synthetic"} <= set(known)
