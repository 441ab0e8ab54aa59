"""Whole networks whose layers are computed as one, against each layer by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lbsgd.models.resnet import Architecture, ResNet

# As ResNet-50, with a projection of stride 1 and one with the stride; as ResNet-50d; as ResNet-18.
NETWORKS = {
    "bottlenecks": Architecture((1, 1), 4, True, "imagenet"),
    "bottlenecks, deep stem": Architecture((1, 1), 4, True, "deep", "pooled_projection"),
    "basic blocks": Architecture((1, 1), 4, False, "imagenet"),
}


def network(architecture: Architecture, **options) -> ResNet:
    """In float64, with scales of both signs."""
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return ResNet(architecture, 10, zero_init_residual=False, norm_scale_std=2.0, **wide, **options)


def images(n: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, 17, 16, 3)))


def run(model: ResNet, variables, x):
    """The gradient of a sum over lanes of 8, what the norms leave in each, and the outputs."""

    def of_lane(params, x):
        given = {**variables, "params": params}
        return model.apply(given, x, train=True, mutable=["batch_stats"])

    def loss(params):
        logits, left = jax.vmap(of_lane, in_axes=(None, 0))(params, x.reshape(-1, 8, *x.shape[1:]))
        return jnp.sum(jnp.sin(logits)), (left, logits)

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def assert_equal_but_for_rounding(found, expected, rtol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize(
    "name",
    [
        "bottlenecks",
        pytest.param("bottlenecks, deep stem", marks=pytest.mark.long),
        pytest.param("basic blocks", marks=pytest.mark.long),
    ],
)
def test_joining_changes_no_number(x64, name):
    """Outputs, gradients and moments of two lanes, about a hundred roundings one upon another."""
    model, x = network(NETWORKS[name]), images(16)
    variables = nn.meta.unbox(model.init(jax.random.key(0), x, train=False))
    found = run(model.clone(joined=True), variables, x)
    assert_equal_but_for_rounding(found, run(model, variables, x), 1e-10)


def test_parameters_and_statistics_lie_where_they_did(x64):
    """However they are initialised: a checkpoint does not tell."""
    model, x = network(NETWORKS["bottlenecks"]), images(2)
    made = [
        m.init(jax.random.key(0), x, train=train)
        for m in (model, model.clone(joined=True))
        for train in (False, True)
    ]
    for other in made[1:]:
        assert jax.tree.structure(other["params"]) == jax.tree.structure(made[0]["params"])
        jax.tree.map(np.testing.assert_array_equal, other["params"], made[0]["params"])
        shapes = [jax.tree.map(jnp.shape, v["batch_stats"]) for v in (other, made[0])]
        assert shapes[0] == shapes[1]


def traced(train=True, **options):
    """Traces a network of bottlenecks, as text."""
    model = ResNet(NETWORKS["bottlenecks"], 10, **{"joined": True, **options})
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)

    def apply(variables, x):
        given = nn.meta.unbox(variables)
        return model.apply(given, x, train=train, mutable=["batch_stats"])

    mapped = jax.vmap(apply, in_axes=(None, 0), axis_name="lane")
    lanes = jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
    return str(jax.make_jaxpr(mapped)(variables, lanes))


def test_layers_are_joined_where_that_is_exact():
    """The last layers of two blocks and the projection of the first stage, and the pooling.

    Not in evaluation, not with statistics that other workers share, not other normalisations.
    """
    joined = traced()
    assert joined.count("name=normalized_product") == 3
    assert joined.count("name=_increasing") == 1
    for other in (
        {"train": False},
        {"norm_axis_names": ("lane",)},
        {"normalization": "group"},
        {"normalization": "none"},
        {"joined": False},
    ):
        found = traced(**other)
        assert "normalized_product" not in found, other
        assert "name=_increasing" not in found, other
