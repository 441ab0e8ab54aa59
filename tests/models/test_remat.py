"""Blocks that are computed again in the backward pass: the same gradients, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lbsgd.models.networks import build_network
from lbsgd.models.resnet import Architecture, ResNet
from lbsgd.run.config import default_config, resolve
from lbsgd.step.memory import peak

DEEP = Architecture((12,), 8, False, "small", "pad")
BOTTLENECK = Architecture((1,), 4, True, "imagenet")


def gradient(model, variables, x):
    def loss(params):
        given = {**variables, "params": params}
        logits, left = model.apply(given, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits)), left

    return jax.jit(jax.grad(loss, has_aux=True))


def drawn(architecture, shape):
    model = ResNet(
        architecture, 10, zero_init_residual=False, dtype=jnp.float64, param_dtype=jnp.float64
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    return model, nn.meta.unbox(model.init(jax.random.key(0), x, train=False)), x


@pytest.mark.parametrize("joined", [True, pytest.param(False, marks=pytest.mark.long)])
def test_gradients_and_statistics_are_the_same(x64, joined):
    """The blocks are the same functions of the same inputs; XLA may add in another order."""
    model, variables, x = drawn(BOTTLENECK, (4, 16, 16, 3))
    found, expected = (
        gradient(m, variables, x)(variables["params"])
        for m in (model.clone(joined=joined, remat=True), model)
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_parameters_are_the_same(x64):
    model, variables, x = drawn(BOTTLENECK, (2, 16, 16, 3))
    again = nn.meta.unbox(model.clone(remat=True).init(jax.random.key(0), x, train=False))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_it_takes_less_memory(x64):
    """Needs one of twelve blocks at a time, and the inputs of the others.

    As traced: XLA for CPUs merges what is computed again with the first time. A block of two
    convolutions keeps four arrays, and the stem two; computed again, a block keeps one, and about
    ten are there in the block at hand.
    """
    model, variables, x = drawn(DEEP, (16, 16, 16, 3))

    def needed(model):
        traced = gradient(model, variables, x).trace(variables["params"])
        return peak(traced.jaxpr, {p.shape for p in jax.tree.leaves(variables["params"])}).others

    assert needed(model.clone(remat=True)) <= (12 + 10) / (12 * 4 + 2) * needed(model)


@pytest.mark.parametrize("frozen", [False, True], ids=["moving", "frozen"])
def test_the_key_is_of_training_alone(frozen):
    config = default_config()
    config.model.update({"name": "cifar_resnet8", "width": 0.25, "remat": True})
    config.batch_norm.frozen_statistics = frozen
    network = build_network(resolve(config), 10, (8, 8, 3))
    params, stats = jax.eval_shape(lambda: network.initialize())
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(params, x, key):
        return jnp.sum(network.train(params, stats_of_zeros, x, key)[0])

    stats_of_zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)
    training = str(jax.make_jaxpr(jax.grad(loss))(params, network.images, key))
    evaluation = str(jax.make_jaxpr(network.evaluate)(params, stats, network.images))
    assert "remat" in training
    assert "remat" not in evaluation
