"""Writes what kfac-jax 0.0.8 makes of two small networks, to compare with: step/kfac_jax.npz.

It does not run beside JAX 0.10, so the vectors are committed; to write them anew, in an environment
of its own:

    python -m venv kfac && kfac/bin/pip install kfac-jax==0.0.8 jax==0.9.1 jaxlib==0.9.1 flax
    JAX_PLATFORMS=cpu kfac/bin/python tests/kfac_jax_vectors.py

By NETWORK/NAME: images and labels (image, label), parameters (params) and the gradient of the mean
loss (gradient). By NETWORK/MODE/NAME: the labels that the mode took (label); of each layer its two
factors (0 of inputs, 1 of outputs) and its scale; and the gradient times the inverse of the damped
curvature (natural).
"""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

FILE = pathlib.Path(__file__).parent / "step" / "kfac_jax.npz"
EXAMPLES, CLASSES = 6, 4
LAYERS = ("conv1", "conv2", "dense")
NETWORKS = {"with bias": True, "without bias": False}
# By mode: of one label sampled for each example, and of the labels that are given.
DAMPING = {"fisher_gradients": 1e-3, "fisher_empirical": 2e-4}


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
    """Parameters, and images and labels."""
    random = np.random.default_rng(17)
    images = random.normal(size=(EXAMPLES, 6, 7, 2))
    shapes = jax.eval_shape(Network(bias).init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * random.normal(size=s.shape)), shapes)
    labels = random.integers(CLASSES, size=EXAMPLES).astype(np.int32)
    return params, {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


def flat(what, tree):
    """The leaves of a tree, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{what}/{jax.tree_util.keystr(path, simple=True, separator='/')}": x for path, x in leaves
    }


def registered_loss(network, params, batch):
    """The mean loss, which kfac-jax is told of."""
    import kfac_jax

    logits = network.apply({"params": params}, batch["image"])
    kfac_jax.register_softmax_cross_entropy_loss(logits, batch["label"])
    return jnp.mean(cross_entropy(logits, batch["label"]))


def of_mode(network, mode, params, batch, gradient):
    """What kfac-jax makes of a network in a mode, by name."""
    import distrax
    import kfac_jax

    loss = functools.partial(registered_loss, network)
    curvature = kfac_jax.BlockDiagonalCurvature(loss, params_index=0, default_estimation_mode=mode)
    key = jax.random.PRNGKey(5)
    state = curvature.init(key, (params, batch), None, None)
    state = curvature.update_curvature_matrix_estimate(
        state, ema_old=0.0, ema_new=1.0, identity_weight=0.0, batch_size=EXAMPLES, rng=key,
        func_args=(params, batch),
    )  # fmt: skip
    natural = curvature.multiply_matpower(
        state, gradient, identity_weight=DAMPING[mode], power=-1, exact_power=False,
        use_cached=False, pmap_axis_name=None,
    )  # fmt: skip
    labels = batch["label"]
    if mode == "fisher_gradients":  # by the key that it has drawn them with
        logits = network.apply({"params": params}, batch["image"])
        labels = distrax.Categorical(logits=logits, dtype=jnp.int32).sample(seed=key)
    found = {"label": labels, **flat("natural", natural)}
    for name, block, of_block in zip(LAYERS, curvature.blocks, state.blocks_states):
        found |= {f"{name}/{i}": factor.value for i, factor in enumerate(of_block.factors)}
        found[f"{name}/scale"] = block.scale(of_block, False)
    return found


def main():
    """Writes them."""
    jax.config.update("jax_enable_x64", True)
    arrays = {}
    for name, bias in NETWORKS.items():
        params, batch = drawn(bias)
        network = Network(bias)
        gradient = jax.grad(functools.partial(registered_loss, network))(params, batch)
        found = {**batch, **flat("params", params), **flat("gradient", gradient)}
        for mode in DAMPING:
            made = of_mode(network, mode, params, batch, gradient)
            found |= {f"{mode}/{key}": x for key, x in made.items()}
        arrays |= {f"{name}/{key}": np.asarray(x) for key, x in found.items()}
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
