"""Statistics of curvature of labels that are sampled from the model (1mc)."""

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
    network_of,
    relative,
    statistics,
    step_of,
)

from lbsgd.models.networks import build_model
from lbsgd.models.normalization import BatchNorm
from lbsgd.step.numbers import Numbers
from lbsgd.step.worker import sampling_key
from lbsgd.tasks.classification import classification
from lbsgd.workers.placement import place

CLASSES = 3
SAMPLED = classification(CLASSES).sampled_loss
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Small(nn.Module):
    """Each kind of curvature: factors, blocks of a norm, a diagonal (of what is called twice)."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(4, (3, 2), (2, 1), padding="SAME", **DOUBLE)(x)
        x = BatchNorm(**DOUBLE)(x, train=train)
        twice = nn.Dense(4, name="twice", **DOUBLE)
        x = jnp.tanh(twice(jnp.tanh(twice(x))))
        return nn.Dense(CLASSES, **DOUBLE)(jnp.mean(x, axis=(1, 2)))


def drawn(examples):
    """Parameters and statistics, all of them drawn, images and labels."""
    keys = iter(jax.random.split(jax.random.key(7), 50))

    def normal(shape):
        return jax.random.normal(next(keys), shape, jnp.float64)

    images = normal((examples, 5, 4, 2))
    variables = nn.meta.unbox(Small().init(next(keys), images, train=False))
    params = jax.tree.map(lambda p: p + 0.2 * normal(p.shape), variables["params"])
    stats = jax.tree.map(lambda p: jnp.abs(p + 0.2 * normal(p.shape)), variables["batch_stats"])
    return params, stats, images, jax.random.randint(next(keys), (examples,), 0, CLASSES)


def sampled(network, params, stats, images, *, update, worker=0):
    """The labels of a worker's examples in an update, by the key alone."""
    logits, _ = network.train(params, stats, images, jax.random.key(0))
    key = sampling_key(Numbers(seed=3, update_index=jnp.int32(update)), jnp.int32(worker))
    return jax.random.categorical(key, logits.astype(jnp.float32))


def test_statistics_are_those_of_each_examples_gradient_with_its_sampled_label():
    """Of the first 2 examples of 7 workers of 4, on 3 devices in 2 steps, with idle slots.

    And the gradient and the loss are those without, of the labels that are given.
    """
    with jax.enable_x64():
        params, stats, images, labels = drawn(28)
        network = network_of(Small(), 4, images.shape[1:], train=False)
        place = {"n": 4, "devices": 3, "steps": 2, "update": 5}
        given = (params, stats, images, labels)
        fisher = fisher_of(network, params, stats, 2, sampled_loss=SAMPLED)
        gradient, found, loss = statistics(fisher, *given, **place)
        drawn_labels = [
            sampled(network, params, stats, images[4 * i : 4 * i + 4], update=5, worker=i)
            for i in range(7)
        ]
        others = jnp.concatenate(drawn_labels)
        assert 0 < jnp.sum(others != labels) < 28
        weights = jnp.tile(jnp.array([1.0, 1.0, 0.0, 0.0]), 7) / 14
        expected, each, *_ = expected_statistics(
            network, params, stats, fisher.layers, images, others, weights
        )
        for name, of_layer in expected.items():
            for key, value in of_layer.items():
                assert relative(found[name][key], value) < 1e-12, (name, key)
        # Of what has no rule the mean gradient, of all examples.
        twice = jax.tree.map(lambda g: jnp.mean(g, axis=0), each["twice"])
        close = functools.partial(np.testing.assert_allclose, rtol=1e-10)
        jax.tree.map(close, found["unruled"]["twice"], twice)
        plain = fisher_of(network, params, stats, 2)
        without, empirical, loss_without = statistics(plain, *given, **place)
        assert relative(found["Dense_0"]["G"], empirical["Dense_0"]["G"]) > 1e-2
        assert loss == loss_without
        # To the bit, but for the order in which a compiler may add.
        close = functools.partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-15)
        jax.tree.map(close, gradient, without)


@pytest.mark.long
def test_their_average_is_the_exact_fisher():
    """Which is the sum over classes by their probability; to 5 standard errors of each entry."""
    examples, repeats = 4, 4096
    with jax.enable_x64():
        params, stats, images, labels = drawn(examples)
        network = network_of(Small(), examples, images.shape[1:], train=False)
        fisher = fisher_of(network, params, stats, examples * repeats, sampled_loss=SAMPLED)
        many, any_labels = jnp.tile(images, (repeats, 1, 1, 1)), jnp.tile(labels, repeats)
        _, found, _ = statistics(fisher, params, stats, many, any_labels)
        p = jax.nn.softmax(network.train(params, stats, images, jax.random.key(0))[0]).T.reshape(-1)
        by_class = jnp.tile(images, (CLASSES, 1, 1, 1))
        classes = jnp.repeat(jnp.arange(CLASSES), examples)
        exact, each, _, outputs = expected_statistics(
            network, params, stats, fisher.layers, by_class, classes, p / examples
        )
        scale, offset = each["BatchNorm_0"]["scale"], each["BatchNorm_0"]["offset"]
        # What is averaged, of each class of each example.
        terms = {
            "Conv_0": jnp.einsum("nsi,nsj->nij", outputs["Conv_0"], outputs["Conv_0"])
            / fisher.layers["Conv_0"].positions,
            "BatchNorm_0": jnp.stack([scale**2, scale * offset, offset**2], axis=-1),
            "Dense_0": jnp.einsum("nsi,nsj->nij", outputs["Dense_0"], outputs["Dense_0"]),
        }
        errors = {}
        for name, key in (("Conv_0", "G"), ("BatchNorm_0", "F"), ("Dense_0", "G")):
            x = terms[name].reshape(CLASSES, examples, *terms[name].shape[1:])
            of_class = p.reshape(CLASSES, examples)
            mean = jnp.einsum("ce,ceij->eij", of_class, x)
            variance = jnp.einsum("ce,ceij->ij", of_class, (x - mean[None]) ** 2) / examples
            errors[name] = jnp.sqrt(variance / (examples * repeats))
            off = jnp.abs(found[name][key] - exact[name][key])
            assert jnp.all(off < 5 * errors[name] + 1e-15), name
        # Those of the labels that are given are not.
        plain = fisher_of(network, params, stats, examples)
        _, empirical, _ = statistics(plain, params, stats, images, labels)
        off = jnp.abs(empirical["Dense_0"]["G"] - exact["Dense_0"]["G"])
        assert jnp.max(off / errors["Dense_0"]) > 20


PLACES = [(8, 1), (3, 2), (2, 2), (1, 4), (5, 1)]


@pytest.fixture(scope="module")
def in_one_place():
    with jax.enable_x64():
        params, stats, images, labels = drawn(28)
        network = network_of(Small(), 4, images.shape[1:], train=True)
        fisher = fisher_of(network, params, stats, 2, sampled_loss=SAMPLED)
        given = (fisher, params, stats, images, labels)
        return given, statistics(*given, n=4, update=9)


@pytest.mark.long
@pytest.mark.parametrize(("devices", "steps"), PLACES)
def test_labels_do_not_depend_on_where_workers_lie(in_one_place, devices, steps):
    """7 workers of 4, idle slots among them; batch norm is each worker's own."""
    given, expected = in_one_place
    with jax.enable_x64():
        found = statistics(*given, devices=devices, steps=steps, n=4, update=9)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-13)
        jax.tree.map(close, found, expected)


def test_each_update_and_worker_draws_its_own():
    with jax.enable_x64():
        params, stats, images, _ = drawn(16)
        network = network_of(Small(), 16, images.shape[1:], train=False)
        places = [(0, 0), (0, 1), (1, 0), (1, 1)]
        found = {
            tuple(sampled(network, params, stats, images, update=u, worker=w).tolist())
            for u, w in places
        }
    assert len(found) == len(places)


@pytest.mark.long
def test_it_costs_another_way_back_through_activations_and_no_more():
    """From the compiled program: a way back to the inputs of layers is as much as one forward."""
    module = build_model("cifar_resnet8", num_classes=10, width=0.5, dtype=jnp.float32)
    placement = place(16, 16, devices=1, accumulation_steps=1)
    images = jnp.zeros((16, 16, 16, 3))
    variables = nn.meta.unbox(module.init(jax.random.key(0), images, train=False))
    params, stats = variables["params"], variables["batch_stats"]
    network = network_of(module, 16, images.shape[1:], train=True)
    given = arguments(placement, params, stats, images, jnp.zeros(16, jnp.int32))
    flops = {}
    for name, loss in (("empirical", None), ("1mc", SAMPLED)):
        fisher = fisher_of(network, params, stats, 16, sampled_loss=loss)
        compiled = step_of(fisher, placement).lower(*given).compile()
        flops[name] = compiled.cost_analysis()["flops"]
    forward = jax.jit(network.train).lower(params, stats, images, jax.random.key(0)).compile()
    more = (flops["1mc"] - flops["empirical"]) / forward.cost_analysis()["flops"]
    # A little less, for of the first layer's inputs nothing is asked; a second forward makes it 2.
    assert 0.8 < more < 1.2
