"""Natural gradients against the inverse of the whole Fisher, by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.models.curvature import DIAGONAL, FULL, KRONECKER, UNIT_WISE, CurvedLayer
from lbsgd.optim.natural import (
    Damping,
    factor_damping,
    scale_by_natural_gradient,
)

RANDOM = np.random.default_rng(0)
DENSE = CurvedLayer(("dense",), KRONECKER, ("kernel", "bias"), 4, 3, 1, (3, 3))
CONV = CurvedLayer(("block", "conv"), KRONECKER, ("kernel",), 12, 2, 5, (2, 3, 2, 2))
NORM = CurvedLayer(("norm",), UNIT_WISE, ("scale", "offset"), 8, 4, 5)
WHOLE = CurvedLayer(("whole",), FULL, ("scale", "offset"), 6, 3, 5)
LAYERS = {layer.name: layer for layer in (DENSE, CONV, NORM, WHOLE)}


def covariance(d):
    rows = RANDOM.normal(size=(3 * d, d))
    return rows.T @ rows / len(rows)


def gradients():
    shapes = {
        "dense": {"kernel": (3, 3), "bias": (3,)},
        "block": {"conv": {"kernel": (2, 3, 2, 2)}},
        "norm": {"scale": (4,), "offset": (4,)},
        "whole": {"scale": (3,), "offset": (3,)},
        "other": (2, 2),
    }
    is_shape = {"is_leaf": lambda x: isinstance(x, tuple)}
    return jax.tree.map(lambda shape: RANDOM.normal(size=shape), shapes, **is_shape)


def statistics(gradient):
    pairs = RANDOM.normal(size=(9, 4, 2))
    moments = np.einsum("nci,ncj->cij", pairs, pairs) / 9
    none = {"dense": {"kernel": None, "bias": None}, "block": {"conv": {"kernel": None}}}
    none |= {name: {"scale": None, "offset": None} for name in ("norm", "whole")}
    return {
        "dense": {"A": covariance(4), "G": covariance(3)},
        "block/conv": {"A": covariance(12), "G": covariance(2)},
        "norm": {"F": np.stack([moments[:, 0, 0], moments[:, 0, 1], moments[:, 1, 1]], axis=-1)},
        "whole": {"A": covariance(6)},
        DIAGONAL: {**none, "other": gradient["other"] ** 2},
    }


def natural(gradient, found, **numbers):
    transform = scale_by_natural_gradient(LAYERS)
    with jax.enable_x64():
        state = transform.init(jax.tree.map(jnp.asarray, gradient))
        told = {"statistics": jax.tree.map(jnp.asarray, found), **numbers}
        update = jax.jit(lambda g, s: transform.update(g, s, **told))
        return jax.tree.map(np.asarray, update(jax.tree.map(jnp.asarray, gradient), state)[0])


def test_the_gradient_is_multiplied_by_the_inverse_of_the_damped_fisher():
    gradient, damping = gradients(), 0.01
    found = statistics(gradient)
    got = natural(gradient, found, damping=damping, norm_damping=16.0)

    def solved(a, g, matrix):
        pi = np.sqrt(np.trace(a) / len(a) / (np.trace(g) / len(g)))
        fisher = np.kron(
            a + pi * np.sqrt(damping) * np.eye(len(a)), g + np.sqrt(damping) / pi * np.eye(len(g))
        )
        return np.linalg.solve(fisher, matrix.reshape(-1)).reshape(matrix.shape)

    dense = np.concatenate([gradient["dense"]["kernel"], gradient["dense"]["bias"][None]])
    expected = solved(found["dense"]["A"], found["dense"]["G"], dense)
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(got["dense"]["kernel"], expected[:3], **close)
    np.testing.assert_allclose(got["dense"]["bias"], expected[3], **close)
    conv = found["block/conv"]
    expected = solved(conv["A"], conv["G"], gradient["block"]["conv"]["kernel"].reshape(12, 2))
    np.testing.assert_allclose(got["block"]["conv"]["kernel"].reshape(12, 2), expected, **close)
    for c, (a, b, d) in enumerate(found["norm"]["F"]):
        matrix = np.array([[a, b], [b, d]]) + 16 * damping * np.eye(2)
        both = np.array([gradient["norm"][name][c] for name in ("scale", "offset")])
        mine = [got["norm"][name][c] for name in ("scale", "offset")]
        np.testing.assert_allclose(mine, np.linalg.solve(matrix, both), **close)
    whole = np.concatenate([gradient["whole"][name] for name in ("scale", "offset")])
    mine = np.concatenate([got["whole"][name] for name in ("scale", "offset")])
    matrix = found["whole"]["A"] + 16 * damping * np.eye(6)
    np.testing.assert_allclose(mine, np.linalg.solve(matrix, whole), **close)
    other = gradient["other"]
    np.testing.assert_allclose(got["other"], other / (other**2 + damping), **close)


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_of_a_linear_layer_it_is_the_natural_gradient_itself(loss):
    """Where each input meets each gradient of the outputs as often, F is the product of factors.

    The Fisher is that of all examples, without any factors, and the damping nearly none.
    """
    inputs, outputs = 3, 3
    a = np.concatenate([RANDOM.normal(size=(5, inputs)), np.ones((5, 1))], axis=1)
    if loss == "squared":  # targets y = W a - g, whatever W is
        g = RANDOM.normal(size=(4, outputs + 1))[:, :outputs]
        g = np.concatenate([g, RANDOM.normal(size=(2, outputs))])
    else:  # the gradient of logits that are alike, by label: softmax less the label
        g = np.full((outputs, outputs), 1 / outputs) - np.eye(outputs)
    pairs = [(x, y) for x in a for y in g]
    each = np.stack([np.outer(x, y).reshape(-1) for x, y in pairs])
    fisher, mean = each.T @ each / len(pairs), each.mean(axis=0) + RANDOM.normal(size=each[0].shape)
    factors = {"A": a.T @ a / len(a), "G": g.T @ g / len(g)}
    if loss == "softmax":  # is singular: adding to all logits changes nothing
        mean = (mean.reshape(-1, outputs) @ (np.eye(outputs) - 1 / outputs)).reshape(-1)
    damping = 1e-14
    matrix = mean.reshape(inputs + 1, outputs)
    gradient = {"dense": {"kernel": matrix[:-1], "bias": matrix[-1]}}
    transform = scale_by_natural_gradient({"dense": DENSE})
    with jax.enable_x64():
        told = {"dense": jax.tree.map(jnp.asarray, factors)}
        told[DIAGONAL] = {"dense": {"kernel": None, "bias": None}}
        numbers = {"statistics": told, "damping": damping, "norm_damping": 1.0}
        given = jax.tree.map(jnp.asarray, gradient)
        got, _ = transform.update(given, transform.init(given), **numbers)
    got = np.concatenate([got["dense"]["kernel"], got["dense"]["bias"][None]])
    # The least-norm solution, which damping tends to.
    expected = np.linalg.lstsq(fisher, mean, rcond=1e-9)[0].reshape(matrix.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_layer_without_any_gradient_shares_its_damping_evenly():
    traces = {"A": jnp.float32(7.0), "G": jnp.float32(0.0)}
    for key in traces:
        by = factor_damping(DENSE, key, traces, Damping(0.04, 16.0))
        np.testing.assert_allclose(by, 0.2, rtol=1e-6)


def test_what_is_not_definite_gives_no_number():
    """So the update is skipped, and counted, as one whose gradient is not finite."""
    gradient = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}}
    transform = scale_by_natural_gradient({"dense": DENSE})
    none = {"dense": {"kernel": None, "bias": None}}
    bad = {"A": -jnp.eye(4), "G": jnp.eye(3)}
    told = {"statistics": {"dense": bad, DIAGONAL: none}, "damping": 1e-3, "norm_damping": 1.0}
    got, _ = transform.update(gradient, transform.init(gradient), **told)
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(got))
