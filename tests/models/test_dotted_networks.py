"""Flags and arguments of other people's modules, and one line for each mistake in them."""

import pathlib

import jax.numpy as jnp
import pytest
import their_networks

from lbsgd.config.dotted import load
from lbsgd.models.dotted import build_modules, load_network
from lbsgd.models.networks import build_network, outline
from lbsgd.run.config import default_config, in_effect, resolve
from lbsgd.system.errors import ConfigError

FILE = pathlib.Path(their_networks.__file__)


def config_of(name: str, **changes):
    config = default_config()
    config.update_from_flattened_dict(
        {"model.name": f"their_networks:{name}", "worker_batch_size": 4, **changes}
    )
    return in_effect(resolve(config))


def built(name: str, **changes):
    config = config_of(name, **changes)
    return build_modules(config, load_network(config), 10)


def refused(name: str, **changes) -> str:
    with pytest.raises(ConfigError) as error:
        outline(build_network(config_of(name, **changes), 10, (8, 8, 3)))
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("GroupNormDropout", {"train": True}),
        ("StockBatchNorm", {"training": True}),
        ("Vit", {"deterministic": False}),
        ("OfAverages", {"use_running_average": False}),
        ("Mlp", {}),
    ],
)
def test_the_flag_is_found_by_its_name(name, training):
    found = built(name)
    assert found.train_flags == training
    assert found.evaluation_flags == {flag: not value for flag, value in training.items()}


def test_a_flag_of_the_class_makes_two_modules():
    found = built("FlagOfClass")
    assert (found.training.train, found.evaluation.train, found.initial.train) == (True,) + (
        False,
    ) * 2
    assert found.train_flags == {}
    found = built("made_by_function")
    norms = [m.layers[1] for m in (found.training, found.evaluation, found.initial)]
    assert [norm.use_running_average for norm in norms] == [False, True, True]


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("float32", jnp.float32), ("bfloat16", jnp.float32), ("float64", jnp.float64)],
)
def test_it_is_given_what_it_has_arguments_for(x64, dtype, wide):
    found = built("GroupNormDropout", dtype=dtype, **{"model.options.rate": 0.25})
    for module in (found.training, found.evaluation, found.initial):
        assert (module.num_classes, module.rate, module.precision) == (10, 0.25, "highest")
    assert (found.training.dtype, found.training.param_dtype) == (jnp.dtype(dtype), wide)
    assert (found.initial.dtype, found.initial.param_dtype) == (jnp.float32, jnp.float32)


def test_options_count_more_than_what_it_would_be_given():
    options = {"model.options.num_classes": 3, "model.options.precision": "default"}
    module = built("GroupNormDropout", **options).training
    assert (module.num_classes, module.precision) == (3, "default")


# Of each kind: what is said, and the text of the line of theirs that it names.
MISTAKES = {
    "Cache": ("has state in 'cache', 'losses', which is not kept", "class Cache"),
    "AnotherFlag": ("needs 'is_training'; lbsgd calls it with images, and with", "class AnotherFl"),
    "NoFlag": ("use_running_average", "return nn.BatchNorm()(x)"),
    "AxisName": ("has BatchNorm BatchNorm_0 with axis_name='lane', which would", "class AxisName"),
    "Collective": ("NameError: Found an unbound axis name: lane", 'jax.lax.pmean(x, "lane")'),
    "Raises": ("TypeError: dot_general requires contracting", "return x @ jnp.ones((2, 3))"),
    "WrongInTraining": ("KeyError: 'of training alone'", 'raise KeyError("of training alone")'),
    "NewStatistics": (
        "ValueError: batch_stats {'late': ()} after an update, {} at the ",
        "class NewSta",
    ),
    "Whole": ("has parameter n of int32, and only floats are trained", "class Whole"),
    "Counter": ("has batch_stats count of int32, and only floats are averaged", "class Counter"),
    "Nothing": ("has no parameters, so there is nothing to train", "class Nothing"),
    "WithoutCall": ("without __call__, which is to take images", "class WithoutCall"),
    "Plain": ("makes a Plain, which is no flax.linen.Module", "class Plain"),
    "made_already": ("is a module made already; name its class, or a function that", "class Noth"),
    "HardCoded": ("has nn.BatchNorm, and no flag by which it is told that it", "class HardCoded"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name):
    says, text = MISTAKES[name]
    line = refused(name)
    assert says in line
    lines = FILE.read_text().splitlines()
    number = next(i for i, code in enumerate(lines, 1) if text in code)
    assert f"{FILE.name}, line {number}" in line


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("Mlp", {"model.options.depth": 3}, "has no option 'depth'; the nearest that it has is "),
        ("Mlp", {"model.options.width": "wide"}, "their_networks.py, line "),
        ("FlagOfClass", {"model.options.train": True}, "leave model.options.train out"),
        ("made_by_function", {"model.options.train": False}, "leave model.options.train out"),
        ("Mlp", {"dtype": "bfloat16"}, "has no argument dtype, so its layers would not hear of"),
        (
            "StockBatchNorm",
            {"batch_norm.frozen_statistics": True},
            "batch_norm.frozen_statistics is known to change nothing but batch norm; leave it out",
        ),
        ("Mlpp", {}, "there is no 'Mlpp' in their_networks; the nearest is 'Mlp'"),
        ("needy", {}, "needs 'heads'; set model.options.heads"),
        ("of_any_options", {"dtype": "bfloat16"}, "has no argument dtype, so its layers would"),
    ],
)
def test_a_mistake_in_the_config_is_one_line(name, changes, says):
    assert says in refused(name, **changes)


def test_whose_it_is_is_known():
    assert load_network(config_of("Mlp")) == load("model.name", "their_networks:Mlp")


def test_options_of_any_name_may_have_the_type():
    """Of a function whose arguments do not tell that it takes one."""
    options = {"dtype": "bfloat16", "model.options.dtype": "bfloat16"}
    network = build_network(config_of("of_any_options", **options), 10, (8, 8, 3))
    assert network.module.dtype == outline(network).outputs.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "options", "layers", "unknown"),
    [
        ("IsTraining", {}, "nn.BatchNorm and nn.Dropout", " (is_training is not known)"),
        ("IsTraining", {"rate": 0.0}, "nn.BatchNorm", " (is_training is not known)"),
        ("Det", {}, "nn.Dropout", " (det is not known)"),
        (
            "Det",
            {"rate": 0.0, "of_attention": 0.1},
            "nn.MultiHeadDotProductAttention",
            " (det is not known)",
        ),
        ("EvalOfClass", {}, "BatchNorm", " (eval_mode is not known)"),
        ("inferring", {}, "nn.BatchNorm", " (inference is not known)"),
        ("Spectral", {}, "nn.SpectralNorm", ""),
    ],
)
def test_a_network_that_is_not_told_that_it_trains_is_an_error(name, options, layers, unknown):
    line = refused(name, **{f"model.options.{key}": value for key, value in options.items()})
    assert line.endswith(
        f") has {layers}, and no flag by which it is told that it trains{unknown}; name the "
        "argument train, training, deterministic or use_running_average"
    )


@pytest.mark.parametrize(("name", "options"), [("Mlp", {}), ("Det", {"rate": 0.0})])
def test_a_network_that_is_the_same_in_evaluation_needs_no_flag(name, options):
    options = {f"model.options.{key}": value for key, value in options.items()}
    outline(build_network(config_of(name, **options), 10, (8, 8, 3)))
