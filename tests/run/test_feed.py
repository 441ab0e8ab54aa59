"""The batches of a run, whatever types its process computes with."""

import functools

import jax
import numpy as np
import pytest

from lbsgd.data.views import CentreCrop, RandomCrop
from lbsgd.run.build import Run, build
from lbsgd.run.config import default_config, resolve
from lbsgd.system.errors import ConfigError


def run_of(dtype: str) -> Run:
    """A run of two batches that are made on the devices, of two sizes."""
    config = default_config()
    config.update({"batch_size": 16, "worker_batch_size": 8, "total_steps": 2, "devices": 2})
    config.update({"dtype": dtype, "learning_rate": {"warmup": "none"}})
    config.model.update({"name": "cifar_resnet8", "width": 0.25})
    config.batch_growth.update({"sizes": (32,), "at_steps": (1,)})
    config.data.update({"source": "synthetic", "synthetic_on_device": True, "image_size": 8})
    config.data.update({"mixup": 0.2, "cutmix": 1.0, "erasing": 0.25, "synthetic_classes": 300})
    return build(resolve(config))


def repeated(dtype: str) -> list[dict[str, np.ndarray]]:
    run = run_of(dtype)
    return [{key: np.asarray(x) for key, x in batch.items()} for batch in run.feed.training(0)]


@functools.cache
def alone_in_its_process() -> list[dict[str, np.ndarray]]:
    return repeated("float32")


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.long), "float64"])
def test_repeated_batches_depend_neither_on_the_type_nor_on_the_process(dtype):
    """They hold bytes and 32-bit numbers, as loaded ones; a step computes in the run's own type."""
    alone = alone_in_its_process()
    with jax.enable_x64(dtype != "float64"):  # as another run in the process might have left it
        found = repeated(dtype)
    assert [batch["label"].shape for batch in found] == [(1, 2, 8), (1, 4, 8)]
    kinds = {"image": "uint8", "label": "int32", "erase_box": "int32", "mix_box": "int32"}
    for batch, expected in zip(found, alone, strict=True):
        assert {key: x.dtype for key, x in batch.items()} == {**kinds, "mix_share": "float32"}
        for key, x in batch.items():
            np.testing.assert_array_equal(x, expected[key], err_msg=key)


def test_random_crops_and_erased_boxes_are_those_of_the_config():
    config = default_config()
    config.update({"batch_size": 16, "worker_batch_size": 8, "total_steps": 2, "seed": 3})
    config.learning_rate.warmup = "none"
    config.model.update({"name": "cifar_resnet8", "width": 0.25})
    config.data.update({"source": "synthetic", "crop": "random", "image_size": 7})
    config.data.update({"crop_short_side": 9, "crop_antialias": True, "erasing": 0.5})
    config.data.update({"erasing_area": (0.1, 0.2), "erasing_aspect": (0.5, 1.0)})
    config.data.erasing_transpose = True
    run = build(resolve(config))
    batches = run.feed.train_batches()
    assert batches.loader.view == RandomCrop((7, 7, 3), 3, 9, True)
    assert run.feed.eval_batches().loader.view == CentreCrop((7, 7, 3), 8)
    mixing = batches.mixing
    assert (mixing.erasing, mixing.erased_area, mixing.erased_aspect) == (0.5, (0.1, 0.2), (0.5, 1))
    assert mixing.erased_transpose
    config.data.crop_short_side = 6
    with pytest.raises(ConfigError, match=r"crop_short_side=6 is less than data\.image_size=7"):
        build(resolve(config))
