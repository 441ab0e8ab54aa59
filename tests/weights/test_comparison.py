"""Checks what is advised where weights do not fit, and what is said of other pixels."""

import functools
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_run import tiny_config

from lbsgd.models.networks import build_network
from lbsgd.models.resnet import IMAGENET
from lbsgd.run.build import plan_run
from lbsgd.run.explain import explain
from lbsgd.system.errors import ConfigError
from lbsgd.weights.comparison import Compared, advise, pixels_differ
from lbsgd.weights.head import variable_shapes
from lbsgd.weights.initial import look_at_weights
from lbsgd.weights.matching import match, recognize
from lbsgd.weights.stored import Entry, Pixels
from lbsgd.weights.torchvision import torchvision_names

HEAD = {"params/classifier/kernel": (1,), "params/classifier/bias": (0,)}


@functools.cache
def shapes_of(name, width, classes=5):
    config = tiny_config(**{"model.name": name, "model.width": width})
    return variable_shapes(build_network(config, classes, (32, 32, 3)))


def advice(network, there, here, width_here, *, of_torch=False, model=None):
    """Asks what to do where a network of shapes `here` is given arrays of shapes `there`."""
    if of_torch:
        names = torchvision_names(IMAGENET[network])
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
        there = {names[n]: tuple(s[axis] for axis in order[len(s)]) for n, s in there.items()}
    entries = {name: Entry(shape, "float32") for name, shape in there.items()}
    rows = match(recognize(network, entries, here), entries, here, lambda: HEAD)
    config = tiny_config(**{"model.name": network, "model.width": width_here})
    return advise(config, Compared(rows, of_torch, model or {}), HEAD)


@pytest.mark.parametrize(("width", "width_here", "classes"), [(0.25, 1.0, 5), (1.0, 0.3, 10)])
def test_the_width_that_is_advised_makes_the_network_there(width, width_here, classes):
    """Also where a fraction of a channel was rounded here, as 0.3 x 16."""
    name = "cifar_resnet8"
    there, here = shapes_of(name, width), shapes_of(name, width_here, classes)
    said = advice(name, there, here, width_here)
    (found,) = re.findall(r"set --config\.model\.width=([\d.]+)$", said)
    assert shapes_of(name, float(found)) == there
    odd = {**there, "params/stem_norm/scale": (7,)}
    assert advice(name, odd, here, width_here) == ""


def test_the_width_is_found_in_torch_s_layouts_too():
    here = shapes_of("resnet18", 0.125)
    there = {n: tuple(8 * x if x >= 8 else x for x in shape) for n, shape in here.items()}
    there["params/classifier/kernel"] = (512, 1000)
    there["params/classifier/bias"] = (1000,)
    said = advice("resnet18", there, here, 0.125, of_torch=True)
    assert said.endswith("the one here model.width=0.125: set --config.model.width=1")


def test_nothing_is_advised_where_more_than_the_width_is_another():
    here = shapes_of("cifar_resnet8", 1.0)
    assert advice("cifar_resnet8", shapes_of("cifar_resnet14", 0.5), here, 1.0) == ""
    assert advice("cifar_resnet8", here, here, 1.0) == ""


def save(path, width, about):
    arrays = {n: np.ones(s, np.float32) for n, s in shapes_of("cifar_resnet8", width, 10).items()}
    arrays["params/stem_conv/conv/kernel"] = arrays["params/stem_conv/conv/kernel"][:, :, :1]
    save_file(arrays, path, metadata={name: json.dumps(value) for name, value in about.items()})


@functools.cache
def variables():
    return plan_run(tiny_config()).variables()


def look(path, **keys):
    return look_at_weights(tiny_config(init_from=str(path), **keys), variables())


def test_a_file_that_says_which_network_it_holds_has_its_keys_advised(tmp_path):
    keys = {"model.name": "cifar_resnet8", "model.width": 0.5, "model.hidden": 3}
    save(tmp_path / "a", 0.5, {"model": keys})
    with pytest.raises(
        ConfigError, match=r"; its network has .*: set --config\.model\.width=0\.5$"
    ):
        look(tmp_path / "a")
    words = r"--config\.model\.name=cifar_resnet8 --config\.model\.width=0\.5"
    with pytest.raises(ConfigError, match=f"set {words}$"):
        look(tmp_path / "a", **{"model.name": "cifar_resnet14"})


@pytest.mark.parametrize("about", [[1], {"model.name": [1]}, "x", {"model.width": None}])
def test_what_a_file_says_of_its_network_may_be_anything(about, tmp_path):
    save(tmp_path / "a", 0.25, {"model": about, "classes": about, "preprocessing": about})
    assert look(tmp_path / "a").notes == ()


HERE = Pixels((32, 32, 3), (0.5,), (0.25,))


@pytest.mark.parametrize(
    ("there", "says"),
    [
        (None, []),
        (HERE, []),
        (HERE._replace(mean=(0.5, 0.5, 0.5)), []),
        (HERE._replace(std=(0.25, 0.25, 0.3)), ["data.std 0.25, 0.25, 0.3, and here it is 0.25"]),
        (
            HERE._replace(mean=(0.4,), image_shape=(64, 64, 3)),
            ["data.mean 0.4, and here it is 0.5", "images of 64x64x3, and here they are 32x32x3"],
        ),
    ],
)
def test_other_pixels_than_the_weights_are_for_are_told(there, says):
    lines = pixels_differ(there, HERE)
    assert len(lines) == len(says)
    for line, text in zip(lines, says):
        assert text in line


def test_a_run_and_its_explanation_say_that_pixels_are_others(tmp_path):
    preprocessing = {"image_shape": [16, 16, 1], "resize_short_side": 0, "mean": [0.2], "std": [1]}
    save(tmp_path / "a", 0.25, {"classes": [], "preprocessing": preprocessing})
    lines = explain(plan_run(tiny_config(init_from=str(tmp_path / "a"), **{"data.mean": (0.1,)})))
    told = [line for line in lines if line.startswith("initial weights: their network")]
    assert [("0.2" in x, "16x16" in x) for x in told[:1] + told[-1:]] == [
        (True, False),
        (False, True),
    ]
    assert any("(pixel / 255 - mean) / std, mean 0.1, std " in line for line in lines)
