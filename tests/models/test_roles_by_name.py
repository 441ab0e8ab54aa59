"""Roles guessed by names and rank, of layers that do not say them."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from lbsgd.models.networks import build_model
from lbsgd.models.roles import Role, roles_by_name, split_roles


class Stock(nn.Module):
    """Layers of Flax: an embedding, attention, a convolution, norms."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 4, name="embed")(tokens)
        x = nn.LayerNorm(name="norm")(x)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        x = nn.Conv(4, (3,), name="conv")(x)
        x = nn.GroupNorm(2, use_bias=False, name="scaled")(x)
        x = nn.RMSNorm(name="rms")(x)
        x = nn.LayerNorm(use_scale=False, name="shifted")(x)
        return nn.Dense(3, name="dense")(x)


def test_of_flax_s_layers():
    shapes = jax.eval_shape(Stock().init, jax.random.key(0), jnp.zeros((2, 5), jnp.int32))
    roles = roles_by_name(shapes["params"])
    attention = roles.pop("attention")
    assert attention.keys() == {"query", "key", "value", "out"}
    layer = {"kernel": Role.KERNEL, "bias": Role.BIAS}
    # Those of attention have a bias of rank 2: the name counts more.
    assert all(part == layer for part in attention.values())
    assert roles == {
        "embed": {"embedding": Role.KERNEL},
        "norm": {"scale": Role.NORM_SCALE, "bias": Role.NORM_OFFSET},
        "conv": layer,
        "scaled": {"scale": Role.NORM_SCALE},
        "rms": {"scale": Role.NORM_SCALE},
        "shifted": {"bias": Role.BIAS},
        "dense": layer,
    }


@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
def test_of_lbsgd_s_networks_they_are_what_the_layers_say(normalization):
    model = build_model("cifar_resnet8", num_classes=10, normalization=normalization)
    boxed = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    )
    params, roles = split_roles(boxed["params"])
    assert roles_by_name(params) == roles


@pytest.mark.parametrize(
    ("params", "roles"),
    [
        ({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, {"w": Role.KERNEL, "b": Role.BIAS}),
        ([jnp.ones((2, 3, 4)), jnp.ones(())], [Role.KERNEL, Role.BIAS]),
        (
            {"scale": jnp.ones(2), "bias": jnp.ones(2)},
            {"scale": Role.NORM_SCALE, "bias": Role.NORM_OFFSET},
        ),
        (jnp.ones((2, 2)), Role.KERNEL),
    ],
)
def test_of_others_by_rank(params, roles):
    assert roles_by_name(params) == roles
