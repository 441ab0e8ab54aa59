"""Natural gradients of linear networks are those of the exact Fisher of each layer.

A linear network passes the gradient of its outputs back the same way whatever its inputs are. So
where each input meets each residual as often, the Fisher of a layer is the product of its factors.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_by_hand import SOFTMAX_LOSS, arguments, fisher_of, network_of, step_of

from lbsgd.models.curvature import DIAGONAL
from lbsgd.optim.natural import scale_by_natural_gradient
from lbsgd.workers.placement import place

INPUTS, OUTPUTS = 5, 3
# So small that it changes nothing but which of the solutions it is, where there are several.
DAMPING = 1e-14


class Linear(nn.Module):
    """Two layers, both with a bias."""

    @nn.compact
    def __call__(self, x, *, train):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        x = nn.Dense(4, name="first", **double)(x.reshape(x.shape[0], -1))
        return nn.Dense(OUTPUTS, name="second", **double)(x)


def squared(outputs, batch):
    return jnp.mean(0.5 * jnp.sum((outputs - batch["label"]) ** 2, axis=-1)), {}


def drawn(loss):
    """Parameters, and all pairs of an input and a target."""
    random = np.random.default_rng(3)
    params = {
        "first": {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)},
        "second": {"kernel": random.normal(size=(4, OUTPUTS)), "bias": random.normal(size=OUTPUTS)},
    }
    x = random.normal(size=(INPUTS, 3))
    if loss == "softmax":
        # What the first layer gives is nothing to the second: with any input p is the same.
        params["first"]["kernel"][:, 2:] = params["first"]["bias"][2:] = 0
        params["second"]["kernel"][:2] = 0
        targets = np.tile(np.arange(OUTPUTS, dtype=np.int32), INPUTS)
        x = np.repeat(x, OUTPUTS, axis=0)
    else:
        residuals = random.normal(size=(4, OUTPUTS))
        x = np.repeat(x, 4, axis=0)
        hidden = x @ params["first"]["kernel"] + params["first"]["bias"]
        outputs = hidden @ params["second"]["kernel"] + params["second"]["bias"]
        targets = outputs - np.tile(residuals, (INPUTS, 1))
    params, x, targets = jax.tree.map(jnp.asarray, (params, x, targets))
    return params, x.reshape(-1, 1, 1, 3), targets


def matrix(layer):
    return jnp.concatenate([layer["kernel"], layer["bias"][None]])


@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_natural_gradient_is_that_of_the_exact_fisher_of_each_layer(loss):
    with jax.enable_x64():
        params, images, targets = drawn(loss)
        n = len(images)
        network = network_of(Linear(), n, images.shape[1:], train=True)
        fisher = fisher_of(network, params, {}, n)
        function = squared if loss == "squared" else SOFTMAX_LOSS
        placement = place(n, n, devices=1, accumulation_steps=1)
        step = step_of(fisher, placement, loss=function)
        gradient, found, _ = step(*arguments(placement, params, {}, images, targets))

        def of_one(params, image, target):
            outputs, _ = network.train(params, {}, image[None], jax.random.key(0))
            return function(outputs, {"label": target[None]})[0]

        each = jax.jit(jax.vmap(jax.grad(of_one), (None, 0, 0)))(params, images, targets)
        transform = scale_by_natural_gradient(fisher.layers)
        none = jax.tree.map(lambda _: None, gradient)
        natural, _ = transform.update(
            gradient,
            transform.init(gradient),
            statistics={**found, DIAGONAL: none},
            damping=DAMPING,
            norm_damping=1.0,
        )
        for name in params:
            rows = np.asarray(jax.vmap(matrix)(each[name])).reshape(n, -1)
            exact = np.linalg.lstsq(rows.T @ rows / n, rows.mean(axis=0), rcond=1e-10)[0]
            ours = np.asarray(matrix(natural[name])).reshape(-1)
            # The square root of the damping is 1e-7, beside eigenvalues of factors above 1e-2.
            np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
