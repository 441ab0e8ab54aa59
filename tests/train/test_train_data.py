"""What a run does with its data: every change of images and labels, and what does not fit."""

import jax
import numpy as np
import pytest
from tiny_run import final_state

from lbsgd import train
from lbsgd.data.source import Example, Splits, numbered_classes
from lbsgd.data.sources import catalogue
from lbsgd.data.sources.arrays import ArraySource
from lbsgd.data.sources.synthetic import SyntheticSource
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve
from lbsgd.system.errors import ConfigError


def small_config(**keys: object):
    config = default_config()
    config.update(
        {
            "batch_size": 64,
            "worker_batch_size": 16,
            "total_steps": 12,
            "devices": 2,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"reference_batch_size": 16, "warmup": "none"},
            "log": {"every_steps": 1, "sinks": ()},
        }
    )
    config.update_from_flattened_dict(keys)
    return resolve(config)


# Everything that changes an image or a label, at once.
ALL_CHANGES = {
    "data.source": "synthetic",
    "data.image_size": 8,
    "data.synthetic_classes": 5,
    "data.synthetic_examples": 150,
    "data.synthetic_validation_examples": 30,
    "data.crop": "inception",
    "data.evaluation_short_side": 8,
    "data.flip": True,
    "data.color_jitter": (0.4, 0.4, 0.4),
    "data.lighting": 0.1,
    "data.mixup": 0.2,
    "data.cutmix": 1.0,
    "data.erasing": 0.5,
    "label_smoothing": 0.1,
}


@pytest.mark.long
@pytest.mark.parametrize(("devices", "steps"), [(4, 1), (3, 2)])
def test_a_run_with_all_changes_is_the_same_on_other_devices(x64, tmp_path, devices, steps):
    """Up to the order of sums."""
    here = small_config(dtype="float64", devices=1, **ALL_CHANGES)
    there = small_config(dtype="float64", devices=devices, accumulation_steps=steps, **ALL_CHANGES)
    drawn = build(here).feed.train_batches().job(0).arrays
    assert drawn.keys() == {"image", "label", "mix_share", "mix_box", "erase_box"}
    states = []
    for config in (here, there):
        workdir = tmp_path / str(config.devices)
        assert train.run(config, workdir).complete
        states.append(final_state(config, workdir))
    expected, found = states
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.long
def test_mixed_and_erased_images_teach_what_is_on_them(tmp_path):
    """A guess is wrong in 90% of the cases."""
    changes = {"data.mixup": 0.2, "data.cutmix": 1.0, "data.erasing": 0.5, "label_smoothing": 0.1}
    keys = {"learning_rate.decay": "cosine", "total_steps": 120}
    outcome = train.run(small_config(**changes, **keys), tmp_path)
    assert outcome.final < 45


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model.num_classes": 9}, "model.num_classes=9, but the data have 10 classes"),
        ({"data.mixup": 0.2, "worker_batch_size": 1}, "mixup.*worker_batch_size is 1"),
        ({"data.cutmix": 1.0, "worker_batch_size": 1}, "cutmix.*worker_batch_size is 1"),
        ({"data.color_jitter": (0, 0.4, 0)}, "data.color_jitter.* 3 channels, the images have 1"),
        ({"data.lighting": 0.1}, "data.lighting.* 3 channels, the images have 1"),
        ({"matmul_precision": "high", "dtype": "float64"}, "of products of float32, and dtype"),
    ],
)
def test_what_does_not_fit_the_data_is_an_error(tmp_path, keys, says):
    with pytest.raises(ConfigError, match=says):
        train.run(small_config(**keys), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "classes"), [(0, 10), (10, 10), (16, 16)])
def test_a_network_may_have_more_classes_than_the_data(asked, classes):
    params = jax.eval_shape(
        build(small_config(**{"model.num_classes": asked})).plan.initial_state
    ).params
    assert params["classifier"]["bias"].shape == (classes,)


class Slanted(ArraySource):
    """Its last image is one pixel wider."""

    def __getitem__(self, index: int) -> Example:
        image, label = super().__getitem__(index)
        return Example(np.pad(image, ((0, 0), (0, index == len(self) - 1), (0, 0))), label)


def small_source(kind=ArraySource) -> ArraySource:
    random = np.random.default_rng(0)
    return kind(
        random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        np.arange(40) % 10,
        numbered_classes(10),
    )


@pytest.mark.long
@pytest.mark.parametrize("which", ["train", "validation"])
def test_images_that_differ_in_size_need_a_crop(tmp_path, monkeypatch, which):
    splits = Splits(small_source(), small_source())._replace(**{which: small_source(Slanted)})
    monkeypatch.setitem(catalogue.SOURCES, "mine", lambda config: splits)
    says = r"an image is 8x9x3, the first one 8x8x3; data\.crop='inception' takes"
    with pytest.raises(ConfigError, match=says):
        train.run(small_config(**{"data.source": "mine"}), tmp_path / "none")
    for crop in ("inception", "random"):
        cropped = {"data.source": "mine", "data.crop": crop, "data.image_size": 6}
        assert train.run(small_config(**cropped), tmp_path / crop).complete


class Unreadable(SyntheticSource):
    """Not to be asked."""

    def __getitem__(self, index: int) -> Example:
        raise AssertionError("asked for an example")


ON_DEVICE = {
    "data.source": "synthetic",
    "data.synthetic_on_device": True,
    "data.image_size": 8,
    "total_steps": 3,
}


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data.mixup": 0.2, "data.cutmix": 1, "data.erasing": 0.5},
    ],
)
def test_synthetic_images_on_the_devices_need_no_loading(tmp_path, monkeypatch, changes):
    train_set, validation = (kind(64, (8, 8, 3), 7, 0) for kind in (Unreadable, SyntheticSource))
    splits = Splits(train_set, validation)
    monkeypatch.setitem(catalogue.SOURCES, "synthetic", lambda config: splits)
    config = small_config(**ON_DEVICE, **changes)
    batches = list(build(config).feed.training(1))
    assert len(batches) == 2
    abstract = build(config).program.abstract_batch()
    assert batches[0].keys() == abstract.keys()
    for key, shape in abstract.items():
        assert (batches[0][key].shape, batches[0][key].dtype) == (shape.shape, shape.dtype)
    labels = np.asarray(batches[0]["label"])
    assert (labels.min(), labels.max()) == (0, 6)  # of 64; one is missing once in 2,000 times
    outcome = train.run(config, tmp_path)
    assert (outcome.updates, outcome.complete) == (3, True)
