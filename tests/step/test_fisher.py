"""Statistics of curvature against those of each example's own gradients, one after the other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_by_hand import (
    arguments,
    expected_statistics,
    fisher_of,
    get,
    network_of,
    relative,
    statistics,
    step_of,
)

from lbsgd.models.curvature import KRONECKER, curved_layers, ruled
from lbsgd.models.networks import build_model
from lbsgd.models.normalization import BatchNorm
from lbsgd.models.resnet import IMAGENET
from lbsgd.workers.placement import place

CLASSES = 5


class Odd(nn.Module):
    """Convolutions of all kinds, and dense layers: with and without bias, and called twice."""

    @nn.compact
    def __call__(self, x, *, train):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        x = nn.Conv(4, (3, 2), (2, 1), padding="SAME", **double)(x)
        x = BatchNorm(**double)(jnp.tanh(x), train=train)
        x = nn.Conv(6, (2, 3), padding="VALID", kernel_dilation=(1, 2), use_bias=False, **double)(x)
        twice = nn.Dense(6, name="twice", **double)
        x = jnp.tanh(twice(jnp.tanh(twice(x))))
        x = nn.Conv(6, (3, 3), feature_group_count=2, name="in_groups", **double)(x)
        x = nn.Dense(7, use_bias=False, **double)(x)  # at each position
        return nn.Dense(CLASSES, **double)(jnp.mean(jnp.tanh(x), axis=(1, 2)))


class Stem(nn.Module):
    """A 7x7 convolution of stride 2, as ResNets begin, and one of 1x1 with stride and bias."""

    @nn.compact
    def __call__(self, x, *, train):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        x = nn.Conv(4, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False, **double)(x)
        x = nn.Conv(6, (1, 1), (2, 2), **double)(jnp.tanh(x))
        return nn.Dense(CLASSES, **double)(jnp.mean(jnp.tanh(x), axis=(1, 2)))


def resnet(name, **options):
    kind = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return build_model(name, num_classes=CLASSES, zero_init_residual=False, **kind, **options)


NETWORKS = {
    "odd": lambda: (Odd(), (7, 8, 3)),
    "stem": lambda: (Stem(), (11, 12, 2)),
    "cifar": lambda: (resnet("cifar_resnet8", width=0.25), (8, 8, 3)),
    "no norm": lambda: (resnet("cifar_resnet8", width=0.25, normalization="none"), (8, 8, 1)),
    "group norm": lambda: (resnet("cifar_resnet8", normalization="group"), (8, 8, 3)),
    **{
        name: lambda name=name: (resnet(name, width=0.0625), (33, 32, 3))
        for name in ("cifar_resnet14", *IMAGENET)
    },
}
CASES = [pytest.param(n, marks=() if n == "odd" else pytest.mark.long) for n in NETWORKS]


@functools.cache
def drawn(name, examples):
    """The module, its variables, all of them drawn, and images and labels."""
    module, shape = NETWORKS[name]()
    keys = iter(jax.random.split(jax.random.key(len(name)), 2000))

    def normal(shape, scale=1.0):
        return scale * jax.random.normal(next(keys), shape, jnp.float64)

    images = normal((examples, *shape))
    init = jax.jit(functools.partial(module.init, train=False))
    variables = nn.meta.unbox(init(next(keys), images[:1]))
    params = jax.tree.map(lambda p: p + normal(p.shape, 0.1), variables["params"])
    stats = variables.get("batch_stats", {})
    stats = jax.tree.map(lambda p: jnp.abs(p + normal(p.shape, 0.1)), stats)
    labels = jax.random.randint(next(keys), (examples,), 0, CLASSES)
    return module, params, stats, images, labels


def test_layers_without_a_rule_are_left_out():
    with jax.enable_x64():
        module, params, stats, images, _ = drawn("odd", 6)
        network = network_of(module, 6, images.shape[1:], train=False)
        layers = curved_layers(network, params, stats)
    assert set(layers) == {"Conv_0", "BatchNorm_0", "Conv_1", "Dense_0", "Dense_1"}
    told = ruled(layers, params)
    assert not any(jax.tree.leaves((told["twice"], told["in_groups"])))
    assert all(jax.tree.leaves({name: told[name] for name in layers}))


@pytest.mark.parametrize("name", CASES)
def test_statistics_are_those_of_each_examples_gradient(name):
    examples = 6
    with jax.enable_x64():
        module, params, stats, images, labels = drawn(name, examples)
        network = network_of(module, examples, images.shape[1:], train=False)
        fisher = fisher_of(network, params, stats, examples)
        _, found, _ = statistics(fisher, params, stats, images, labels)
        expected, each, inputs, outputs = expected_statistics(
            network, params, stats, fisher.layers, images, labels
        )
        for name, layer in fisher.layers.items():
            for key, value in expected[name].items():
                assert relative(found[name][key], value) < 1e-12
            if layer.kind != KRONECKER:
                continue
            # And these inputs are the right ones: with the gradients of the outputs they make the
            # gradient of each example.
            own = get(each, layer)
            matrix = [own["kernel"].reshape(examples, -1, layer.outputs)]
            matrix += [own[name][:, None] for name in layer.parameters[1:]]
            whole = jnp.concatenate(matrix, axis=1)
            assert relative(jnp.einsum("nsi,nsj->nij", inputs[name], outputs[name]), whole) < 1e-12


@pytest.mark.long
def test_images_may_be_smaller_than_those_that_layers_were_described_by():
    """Takes the average of G over as many positions as these images have."""
    with jax.enable_x64():
        module, params, stats, images, labels = drawn("odd", 6)
        planned = network_of(module, 6, images.shape[1:], train=False)
        small = images[:, :5, :6]
        network = network_of(module, 6, small.shape[1:], train=False)
        layers = fisher_of(network, params, stats, 6).layers
        fisher = fisher_of(planned, params, stats, 6)
        assert fisher.layers["Conv_0"].positions != layers["Conv_0"].positions
        _, found, _ = statistics(fisher, params, stats, small, labels)
        expected, *_ = expected_statistics(network, params, stats, layers, small, labels)
        for name, of_layer in expected.items():
            for key, value in of_layer.items():
                assert relative(found[name][key], value) < 1e-12


@pytest.mark.parametrize(
    ("devices", "steps"),
    [
        pytest.param(*p, marks=pytest.mark.long)  # tests/step/test_sampled_labels.py is short
        for p in ((3, 2), (1, 1), (1, 4), (3, 1), (8, 1), (2, 2), (4, 2), (5, 1))
    ],
)
def test_statistics_do_not_depend_on_where_workers_lie(devices, steps):
    """7 workers of 4, of whose first 2 examples they are; idle slots and batch norm among them."""
    with jax.enable_x64():
        module, params, stats, images, labels = drawn("odd", 28)
        network = network_of(module, 4, images.shape[1:], train=True)
        fisher = fisher_of(network, params, stats, 2)
        one = place(4, 4, devices=1, accumulation_steps=1)
        step = step_of(fisher, one)
        parts = ((images[i : i + 4], labels[i : i + 4]) for i in range(0, 28, 4))
        alone = [step(*arguments(one, params, stats, *part)) for part in parts]
        expected = jax.tree.map(lambda *x: sum(x) / 7, *alone)
        found = statistics(fisher, params, stats, images, labels, devices=devices, steps=steps, n=4)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-13)
        jax.tree.map(close, found, expected)
