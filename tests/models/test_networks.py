"""Networks as pure functions: what is drawn, what training leaves, what evaluation gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lbsgd.models.explain import (
    explain_network,
    explain_normalization,
)
from lbsgd.models.networks import SYNCED_AXES, build_model, build_network, outline
from lbsgd.models.unused import (
    explain_unused_batch_norm,
    reset_unused_batch_norm,
    unused_batch_norm_keys,
)
from lbsgd.models.values import check_values
from lbsgd.run.config import default_config, in_effect, resolve
from lbsgd.system.errors import ConfigError
from lbsgd.workers.placement import DEVICE_AXES, LANE_AXIS

EPS = np.finfo(np.float64).eps
SHAPE = (8, 8, 3)
N = 4


def config_of(name: str, **changes):
    config = default_config()
    name = name if name.islower() else f"their_networks:{name}"
    config.update_from_flattened_dict({"model.name": name, "worker_batch_size": N, **changes})
    return in_effect(resolve(config))


def network_of(name: str, **changes):
    return build_network(config_of(name, **changes), 10, SHAPE)


def images(*seed: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(N, *SHAPE)), dtype)


def assert_equal(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(autouse=True)
def promotion_as_users_have_it():
    """Flax's own layers mix types, and count on it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def started(network, seed: int = 0):
    """Parameters and statistics of a network: numbers of numpy's, which need no compiling."""
    params, stats = jax.eval_shape(lambda: network.initialize())
    random = np.random.default_rng(seed)

    def some(s):
        return jnp.asarray(random.normal(size=s.shape) / np.sqrt(max(s.size, 1)), s.dtype)

    ones = {"mean": jnp.zeros, "var": jnp.ones, "seen": jnp.zeros}
    stats = jax.tree_util.tree_map_with_path(
        lambda path, s: ones[path[-1].key](s.shape, s.dtype), stats
    )
    return jax.tree.map(some, params), stats


def trained(network, params, stats, x, seed: int = 0):
    return jax.jit(network.train)(params, stats, x, jax.random.key(seed))


def evaluated(network, params, stats, x):
    return jax.jit(network.evaluate)(params, stats, x)


# --- what is drawn ---------------------------------------------------------------------------


def by_flax(config, **options):
    """What Flax's own `init` draws in float32, without boxes."""
    model = build_model(config.model.name, num_classes=10, **options)
    key = jax.random.key(config.seed)
    drawn = model.init(key, jnp.zeros((1, *SHAPE), jnp.float32), train=False)

    def unboxed(box):
        return box.value

    params = jax.tree.map(unboxed, drawn["params"], is_leaf=lambda node: hasattr(node, "role"))
    return params, drawn.get("batch_stats", {})


OWN = [
    ("cifar_resnet8", {"width": 0.25}),
    ("cifar_resnet14", {"normalization": "none"}),
    ("cifar_resnet8", {"normalization": "group"}),
    ("resnet18", {"width": 0.125}),
    ("resnet50", {"width": 0.125}),
    ("resnet50", {"width": 0.125, "skip_connections": False, "zero_init_residual": False}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [*OWN[:3], *(pytest.param(*own, marks=pytest.mark.long) for own in OWN[3:])],
)
def test_own_networks_are_drawn_by_the_operations_of_flax(name, options):
    """The same, one by one, so their numbers are bitwise the same."""
    changes = {f"model.{key}": value for key, value in options.items()}
    changes["seed"] = 3
    config = config_of(name, **changes)
    expected = jax.make_jaxpr(lambda: by_flax(config, **options))()
    assert str(jax.make_jaxpr(network_of(name, **changes).initialize)()) == str(expected)


@pytest.mark.long
@pytest.mark.parametrize(("name", "options"), OWN)
def test_own_networks_start_as_flax_would_have_them(name, options):
    """Bitwise, in each type; float64 from the same numbers."""
    changes = {f"model.{key}": value for key, value in options.items()}
    config = config_of(name, **changes)
    expected = jax.jit(lambda: by_flax(config, **options))()
    for dtype in ("float32", "bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            found = jax.jit(network_of(name, dtype=dtype, **changes).initialize)()
            wide = jnp.float64 if dtype == "float64" else jnp.float32
            assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(wide)}
            assert_equal(found, expected)


@pytest.mark.parametrize("name", ["cifar_resnet8", "GroupNormDropout", "StockBatchNorm", "Raw"])
def test_float64_starts_from_the_numbers_of_float32(x64, name):
    """Also where a module gives its parameters no type: all but the last casts is float32."""
    with jax.enable_x64(False):
        single = jax.make_jaxpr(network_of(name).initialize)().jaxpr
    double = jax.make_jaxpr(network_of(name, dtype="float64").initialize)().jaxpr
    casts = [e for e in double.eqns if e.outvars[0].aval.dtype == jnp.float64]
    assert len(double.eqns) == len(single.eqns) + len(casts)
    assert {e.primitive.name for e in casts} == {"convert_element_type"}
    assert {v.aval.dtype for v in double.outvars} == {jnp.dtype(jnp.float64)}


def test_a_type_that_a_module_chooses_stays():
    network = network_of("GroupNormDropout", **{"model.options.param_dtype": "bfloat16"})
    found = jax.tree.leaves(jax.eval_shape(network.initialize))
    assert {leaf.dtype for leaf in found} == {jnp.dtype("bfloat16")}


def test_a_network_without_batch_norm_has_no_statistics():
    network = network_of("Mlp")
    params, stats = started(network)
    outputs, left = trained(network, params, stats, images(0))
    assert stats == left == outline(network).batch_stats == {}
    first, second = params["Dense_0"], params["Dense_1"]
    hidden = np.maximum(images(0).reshape(N, -1) @ first["kernel"] + first["bias"], 0)
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


# --- dropout ---------------------------------------------------------------------------------


@functools.cache
def dropped():
    network = network_of("GroupNormDropout")
    params, stats = started(network)
    return network, params, stats, jax.jit(network.train)


def outputs_for(key) -> jax.Array:
    _, params, stats, train = dropped()
    return train(params, stats, images(0), key)[0]


def test_a_key_decides_what_is_dropped():
    one, again, other = (outputs_for(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


def test_workers_side_by_side_drop_what_each_would_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(outputs_for, axis_name=LANE_AXIS)(keys)
    for key, outputs in zip(keys, together):
        # In another order: sums of up to 64 numbers below ten.
        np.testing.assert_allclose(outputs_for(key), outputs, rtol=0, atol=1e-5)


def test_dropout_is_flax_s_own_of_that_key():
    network, params, _, _ = dropped()
    module, key = network.module, jax.random.key(3)
    apply = jax.jit(lambda key: module.apply(params, images(0), train=True, rngs={"dropout": key}))
    params = {"params": params}
    # Compiled with more or less around it, it may be summed in another order.
    np.testing.assert_allclose(outputs_for(key), apply(key), rtol=0, atol=1e-5)


def test_nothing_is_dropped_in_evaluation():
    network, params, stats, _ = dropped()
    sure = network_of("GroupNormDropout", **{"model.options.rate": 0.0})
    expected, _ = trained(sure, params, stats, images(0))
    found = evaluated(network, params, stats, images(0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_any_other_stream_has_random_numbers_too():
    network = network_of("Noise")
    params, stats = started(network)
    one, again, other = (trained(network, params, stats, images(0), seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(
        evaluated(network, params, stats, images(0)),
        evaluated(network_of("Mlp"), params, stats, images(0)),
    )


# --- statistics ------------------------------------------------------------------------------


def test_stock_batch_norm_moves_its_averages_by_its_own_momentum(x64):
    """0.8, and not the config's; by numpy, of what the convolution gives."""
    network = network_of("StockBatchNorm", dtype="float64", **{"batch_norm.momentum": 0.5})
    params, stats = started(network)
    x = images(0, dtype=jnp.float64)
    left = trained(network, params, stats, x)[1]
    y = np.asarray(
        jax.lax.conv_general_dilated(
            x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    expected = {"mean": 0.2 * y.mean((0, 1, 2)), "var": 0.8 + 0.2 * y.var((0, 1, 2))}
    for name, value in expected.items():
        assert left["norm"][name].dtype == jnp.float64
        # Moments of 256 numbers below ten; E[x^2] - E[x]^2 is Flax's.
        np.testing.assert_allclose(left["norm"][name], value, rtol=0, atol=256 * 100 * EPS)
    normal = (y - left["norm"]["mean"]) / np.sqrt(left["norm"]["var"] + 1e-5)
    normal = normal * params["norm"]["scale"] + params["norm"]["bias"]
    dense = params["Dense_0"]
    expected = np.maximum(normal, 0).mean((1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(evaluated(network, params, left, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statistics_of_step_are_told_from_those_that_a_module_moves(dtype):
    with jax.enable_x64(dtype == "float64"):
        network = network_of("Mixed", dtype=dtype)
        found = outline(network)
        assert found.of_step == {
            "ours": {"mean": True, "var": True},
            "stock": {"mean": False, "var": False},
            "seen": False,
        }
        params, stats = started(network)
        x = images(0, dtype=jnp.dtype(dtype))
        left = trained(network, params, stats, x)[1]
        types = [jax.tree.map(lambda x: x.dtype, tree) for tree in (left, stats)]
        assert types[0] == types[1]
        assert left["seen"] == 1
        # Moments, and no averages.
        np.testing.assert_allclose(left["ours"]["mean"], np.mean(x, (0, 1, 2)), rtol=0, atol=1e-5)


def test_all_statistics_of_own_networks_are_of_the_step():
    found = outline(network_of("cifar_resnet8"))
    assert all(jax.tree.leaves(found.of_step))
    assert jax.tree.structure(found.of_step) == jax.tree.structure(found.batch_stats)
    assert found.sources == {"with_role": len(jax.tree.leaves(found.params))}


def test_frozen_statistics_normalize_in_training_as_in_evaluation():
    """Compares with the evaluation of a network that does not freeze them; none are averaged."""
    keys = {"model.width": 0.25}
    frozen = network_of("cifar_resnet8", **keys, **{"batch_norm.frozen_statistics": True})
    plain, x = network_of("cifar_resnet8", **keys), images(0)
    params, stats = started(plain)
    outputs, left = trained(frozen, params, stats, x)
    expected = evaluated(plain, params, stats, x)
    # One computation, compiled in two programs.
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert left == {}


def test_flags_of_a_class_are_followed():
    network = network_of("FlagOfClass")
    params, stats = started(network)
    x = images(0) + 3
    left = trained(network, params, stats, x)[1]
    mean = left["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * np.mean(x, (0, 1, 2)), rtol=1e-5)
    # By these, and not by the moments of the batch.
    before, after = (evaluated(network, params, of, x) for of in (stats, left))
    assert np.abs(before - after).max() > 0


# --- precision -------------------------------------------------------------------------------


def precisions(jaxpr) -> set:
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.add(equation.params["precision"])
        for inner in jaxprs_in_params(equation.params):
            found |= precisions(inner)
    return found


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("Products", precision) for precision in ("highest", "high", "default")),
        ("GroupNormDropout", "high"),
        ("cifar_resnet8", "high"),
    ],
)
def test_all_products_have_the_precision_of_the_config(name, precision):
    """Forwards and backwards, whether or not a module has an argument for it."""
    network = network_of(name, matmul_precision=precision)
    params, stats = jax.eval_shape(network.initialize)

    def loss(params, x, key):
        return jnp.sum(network.train(params, stats_of_zeros, x, key)[0])

    stats_of_zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)
    key = jax.random.key(0)
    level = jax.lax.Precision(precision)
    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, images(0), key)
    assert precisions(traced.jaxpr) == {(level, level)}
    evaluated = jax.make_jaxpr(network.evaluate)(params, stats_of_zeros, images(0))
    assert precisions(evaluated.jaxpr) == {(level, level)}


# --- the outline -----------------------------------------------------------------------------


def test_outputs_are_those_of_evaluating_one_image():
    for name in ("cifar_resnet8", "Vit", "StockBatchNorm"):
        changes = {"model.roles": "their_networks:vit_roles"} if name == "Vit" else {}
        network = network_of(name, **changes)
        found = outline(network)
        one = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
        assert found.outputs == jax.eval_shape(
            network.evaluate, found.params, found.batch_stats, one
        )
        assert found.outputs.shape == (1, 10)
        assert (found.params, found.batch_stats) == jax.eval_shape(network.initialize)


def test_synced_axes_are_those_of_the_workers():
    assert (LANE_AXIS, DEVICE_AXES[1]) == SYNCED_AXES
    outline(network_of("cifar_resnet8", **{"batch_norm.synced_workers": 2}))


@pytest.mark.parametrize(
    ("name", "of_batch", "of_example"),
    [
        ("StockBatchNorm", {"norm": 64}, {}),
        ("Mixed", {"ours": 64, "stock": 64}, {}),
        ("GroupNormDropout", {}, {"GroupNorm_0": 64 * 8 // 4}),
        ("Frozen", {}, {"InstanceNorm_0": 64}),
        ("Mlp", {}, {}),
    ],
)
def test_values_that_are_normalized_together_are_counted(name, of_batch, of_example):
    found = outline(network_of(name)).values
    assert (found.of_batch, found.of_example) == (of_batch, of_example)


def test_own_networks_count_them_too():
    found = outline(network_of("cifar_resnet8", **{"model.normalization": "group"})).values
    assert not found.of_batch
    # 16 channels in 8 groups, of 8x8 pixels; 64 in 32, of 2x2.
    assert found.of_example["stem_norm"] == 2 * 64
    assert found.of_example["stage3_block1/norm2"] == 2 * 4
    found = outline(network_of("cifar_resnet8")).values
    assert (found.of_batch["stem_norm"], found.of_batch["stage3_block1/norm1"]) == (64, 4)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("Tiny", {"worker_batch_size": 2}, "batch norm: norm normalises 2 values of a channel"),
        ("TinyGroups", {}, "GroupNorm_0 normalises 2 values at a time, and no gradient passes it"),
    ],
)
def test_too_few_values_are_an_error(name, changes, says):
    config = config_of(name, **changes)
    with pytest.raises(ConfigError, match=says) as error:
        check_values(config, outline(network_of(name, **changes)).values, confusion=False)
    for key in ("model.width", "model.normalization", "synced_workers"):
        assert key not in str(error.value)  # which are of lbsgd's own
    check_values(config_of("Tiny"), outline(network_of("Tiny")).values, confusion=False)


# --- what is said ----------------------------------------------------------------------------


BATCH_NORM = {
    "batch_norm.momentum": 0.5,
    "batch_norm.running_variance": "total",
    "batch_norm.precise_examples": 256,
}


@pytest.mark.parametrize(
    ("name", "unused", "why"),
    [
        ("StockBatchNorm", list(BATCH_NORM), "; nn.BatchNorm has a momentum of its own)"),
        ("Mlp", list(BATCH_NORM), ", which the network has not)"),
        ("Mixed", [], ""),
        ("cifar_resnet8", [], ""),
    ],
)
def test_keys_of_batch_norm_are_unused_without_ours(name, unused, why):
    config = config_of(name, **BATCH_NORM)
    found = outline(network_of(name))
    keys = unused_batch_norm_keys(config, found)
    assert [key.key for key in keys] == unused
    assert all(str(key).endswith(why) for key in keys)
    lines = explain_unused_batch_norm(config, found)
    assert lines == ([f"without effect: {'; '.join(map(str, keys))}"] if unused else [])
    assert unused_batch_norm_keys(config_of(name), found) == []
    assert reset_unused_batch_norm(config, found) == (config_of(name) if unused else config)


def test_another_s_network_is_explained():
    config = config_of("Vit", **{"model.roles": "their_networks:vit_roles"})
    network = build_network(config, 10, SHAPE)
    found = outline(network)
    line, roles = explain_network(config, network.named, found)
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    assert line.startswith(f"network: their_networks:Vit, {count:,} parameters in 16 arrays")
    assert roles.startswith("network: roles of parameters: 8 by nn.DenseGeneral, 1 by model.roles")
    assert explain_normalization(config, found, 0) == "normalization: 1 nn.LayerNorm"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Mlp", "normalization: no layer of Flax's or lbsgd's"),
        ("GroupNormDropout", "normalization: 1 nn.GroupNorm"),
        (
            "StockBatchNorm",
            "normalization: 1 nn.BatchNorm; nn.BatchNorm per worker, over 4 examples, with a "
            "momentum of its own",
        ),
        (
            "Mixed",
            "normalization: 1 BatchNorm, 1 nn.BatchNorm; nn.BatchNorm per worker, over 4 examples, "
            "with a momentum of its own; batch norm: per worker, over 4 examples; running averages "
            "with momentum 0.9",
        ),
    ],
)
def test_the_normalization_is_explained(name, says):
    assert explain_normalization(config_of(name), outline(network_of(name)), 0) == says
