"""Writes what kfac-jax 0.0.8 makes of two small networks, to compare with: step/kfac_jax.npz.

It does not run beside JAX 0.10, so the vectors are committed; to write them anew, in an environment
of its own:

    python -m venv kfac && kfac/bin/pip install kfac-jax==0.0.8 jax==0.9.1 jaxlib==0.9.1 flax
    JAX_PLATFORMS=cpu kfac/bin/python tests/kfac_jax_vectors.py

By "NETWORK/KIND/...": of images and labels the parameters (params), the gradient of the mean loss
(gradient), and by each mode of kfac-jax the labels that it took, and of each layer its two factors
(0 of inputs, 1 of outputs), its scale, and the product of the inverse of its damped curvature and
the gradient (natural).
"""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

FILE = pathlib.Path(__file__).parent / "step" / "kfac_jax.npz"
EXAMPLES, CLASSES = 6, 4
DAMPING = 1e-3
# (name of its module, positions of its outputs)
LAYERS = (("conv1", 12), ("conv2", 4), ("dense", 1))
NETWORKS = {"with bias": True, "without bias": False}
# Of one label sampled for each example, and of the labels that are given.
MODES = ("fisher_gradients", "fisher_empirical")


class Network(nn.Module):
    """Two convolutions, one of them strided and padded, and a dense layer."""

    bias: bool

    @nn.compact
    def __call__(self, x):
        kind = {"use_bias": self.bias, "dtype": jnp.float64, "param_dtype": jnp.float64}
        x = nn.Conv(5, (3, 3), (2, 2), padding="SAME", name="conv1", **kind)(x)
        x = nn.Conv(4, (2, 3), padding="VALID", name="conv2", **kind)(jnp.tanh(x))
        x = jnp.tanh(x).reshape(x.shape[0], -1)
        return nn.Dense(CLASSES, name="dense", **kind)(x)


def cross_entropy(logits, labels):
    """The loss of each example."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def drawn(bias):
    """Parameters, images and labels."""
    random = np.random.default_rng(17)
    images = random.normal(size=(EXAMPLES, 6, 7, 2))
    shapes = jax.eval_shape(Network(bias).init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda s: 0.3 * random.normal(size=s.shape), shapes)
    return params, images, random.integers(CLASSES, size=EXAMPLES).astype(np.int32)


def vectors(bias, mode):
    """By name, what kfac-jax makes of a network in a mode."""
    import distrax
    import kfac_jax

    params, images, labels = drawn(bias)
    network = Network(bias)

    def loss(params, batch):
        logits = network.apply({"params": params}, batch["image"])
        kfac_jax.register_softmax_cross_entropy_loss(logits, batch["label"])
        return jnp.mean(cross_entropy(logits, batch["label"]))

    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    arguments = (jax.tree.map(jnp.asarray, params), batch)
    gradient = jax.grad(loss)(*arguments)
    curvature = kfac_jax.BlockDiagonalCurvature(loss, params_index=0, default_estimation_mode=mode)
    key = jax.random.PRNGKey(5)
    state = curvature.init(key, arguments, None, None)
    state = curvature.update_curvature_matrix_estimate(
        state, 0.0, 1.0, 0.0, EXAMPLES, key, arguments
    )
    # In the mode whose moments are 1/N times ours, of a damping that is.
    damping = DAMPING / (EXAMPLES if mode == "fisher_empirical" else 1)
    natural = curvature.multiply_matpower(state, gradient, damping, -1, False, False, None)
    if mode == "fisher_gradients":  # by the key that it draws them with
        logits = network.apply({"params": params}, images)
        labels = distrax.Categorical(logits=logits, dtype=jnp.int32).sample(seed=key)
    found = {"labels": labels}
    for (name, _), block, of_block in zip(LAYERS, curvature.blocks, state.blocks_states):
        factors = [factor.value for factor in of_block.factors]
        found |= {f"{name}/{i}": factor for i, factor in enumerate(factors)}
        found[f"{name}/scale"] = block.scale(of_block, False)
    for tree, what in ((natural, "natural"), (gradient, "gradient"), (params, "params")):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{what}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = leaf
    return {**found, "images": images}


def main():
    """Writes them."""
    jax.config.update("jax_enable_x64", True)
    arrays = {
        f"{name}/{mode}/{key}": np.asarray(value)
        for name, bias in NETWORKS.items()
        for mode in MODES
        for key, value in vectors(bias, mode).items()
    }
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
