"""Statistics and natural gradients against those of kfac-jax 0.0.8 (tests/kfac_jax_vectors.py).

Its definitions are others, for a convolution of N examples and h w positions:

    kfac-jax   A' = sum a a^T / (N h w)    G' = sum g g^T / (N h w)    curvature h w (A' x G')
    lbsgd      A  = sum a a^T / N          G  = sum g g^T / (N h w)    curvature A x G

so A = h w A' and G = G': the products are equal. The damping too: with pi' = sqrt(mean diagonal of
A' / that of G'), pi = sqrt(h w) pi', and its lambda divided by the scale of the curvature,

    A + pi sqrt(lambda) I = h w (A' + pi' sqrt(lambda / (h w)) I)
    G + sqrt(lambda) / pi I = G' + sqrt(lambda / (h w)) / pi' I

so with the same lambda natural gradients are equal, although no damped factor of A is. That is of
labels which are sampled (`fisher_gradients`, lbsgd's 1mc). Of the given ones (`fisher_empirical`)
kfac-jax divides by N once more, G' = G / N: its curvature of the damping lambda / N is 1/N times
ours of lambda, and its natural gradient N times ours.

Not compared, for the definitions differ: batch norm (there a diagonal), a dense layer at several
positions, and the exact inverse of A x G + lambda I, which kfac-jax has too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_by_hand import arguments, fisher_of, network_of, step_of
from kfac_jax_vectors import DAMPING, EXAMPLES, FILE, LAYERS, NETWORKS, Network

from lbsgd.models.curvature import DIAGONAL
from lbsgd.optim.natural import scale_by_natural_gradient
from lbsgd.workers.placement import place


class InTraining(Network):
    """The same network, with the flag that `network_of` gives."""

    def __call__(self, x, *, train):
        return super().__call__(x)


def of_network(name):
    """What is stored of a network: by name, and its parameters and their gradient as trees."""
    with np.load(FILE) as stored:
        found = {k.removeprefix(f"{name}/"): x for k, x in stored.items() if k.startswith(name)}
    return found, tree_of(found, "params"), tree_of(found, "gradient")


def of_mode(stored, mode):
    return {k.removeprefix(f"{mode}/"): x for k, x in stored.items() if k.startswith(mode)}


def tree_of(found, what):
    tree = {layer: {} for layer in LAYERS}
    for key, x in found.items():
        if key.startswith(f"{what}/"):
            layer, parameter = key.removeprefix(f"{what}/").split("/")
            tree[layer][parameter] = jnp.asarray(x)
    return tree


def natural_gradient(layers, found, gradient, damping):
    told = {**found, DIAGONAL: jax.tree.map(lambda _: None, gradient)}
    transform = scale_by_natural_gradient(layers)
    state = transform.init(gradient)
    update = jax.jit(functools.partial(transform.update, norm_damping=1.0))
    return update(gradient, state, statistics=told, damping=damping)[0]


def conditions(a, g, damping):
    """The condition numbers of the two damped factors."""
    pi = np.sqrt(np.trace(a) / len(a) / (np.trace(g) / len(g)))
    damped = (
        x + number * np.sqrt(damping) * np.eye(len(x)) for x, number in ((a, pi), (g, 1 / pi))
    )
    return [np.linalg.cond(x) for x in damped]


def close(found, expected, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), found, expected)


# Sums of at most 72 terms, in float64.
SUMS = {"rtol": 1e-11, "atol": 1e-14}
# The two inverses lose as many digits as their condition numbers have: below 1e3 each, see below.
INVERSES = {"rtol": 1e-10, "atol": 1e-11}


@pytest.mark.parametrize(
    "name", ["with bias", pytest.param("without bias", marks=pytest.mark.long)]
)
def test_products_of_factors_and_natural_gradients_are_those_of_kfac_jax(name):
    with jax.enable_x64():
        stored, params, expected_gradient = of_network(name)
        network = network_of(InTraining(NETWORKS[name]), EXAMPLES, (6, 7, 2), train=True)
        fisher = fisher_of(network, params, {}, EXAMPLES)
        assert fisher.layers.keys() == set(LAYERS)
        placement = place(EXAMPLES, EXAMPLES, devices=1, accumulation_steps=1)
        step, images = step_of(fisher, placement), jnp.asarray(stored["image"])
        for mode, damping in DAMPING.items():
            given = of_mode(stored, mode)
            gradient, found, _ = step(
                *arguments(placement, params, {}, images, jnp.asarray(given["label"]))
            )
            n = EXAMPLES if mode == "fisher_empirical" else 1
            if mode == "fisher_empirical":  # the labels of the loss themselves
                close(gradient, expected_gradient, **SUMS)
            for layer in fisher.layers.values():
                of_inputs, of_outputs, scale = (
                    given[f"{layer.name}/{k}"] for k in ("0", "1", "scale")
                )
                assert scale == layer.positions
                product = n * scale * np.kron(of_inputs, of_outputs)
                ours = found[layer.name]
                close(jnp.kron(ours["A"], ours["G"]), product, **SUMS)
                close(ours["G"], n * of_outputs, **SUMS)
                assert max(conditions(ours["A"], ours["G"], n * damping)) < 1e3
            mine = natural_gradient(fisher.layers, found, expected_gradient, n * damping)
            close(jax.tree.map(lambda x, n=n: n * x, mine), tree_of(given, "natural"), **INVERSES)
