"""Roles of the layers of Flax's, by their class, however they are lifted; and of what has none."""

import itertools

import jax
import jax.numpy as jnp
import pytest
import their_networks
from flax import linen as nn

from lbsgd.models.layers import Layers
from lbsgd.models.networks import build_network, outline
from lbsgd.models.roles import Role, split_roles, with_role
from lbsgd.run.config import default_config, in_effect, resolve
from lbsgd.system.errors import ConfigError

KERNEL, BIAS, SCALE, OFFSET = Role.KERNEL, Role.BIAS, Role.NORM_SCALE, Role.NORM_OFFSET
LINEAR, NORM = {"kernel": KERNEL, "bias": BIAS}, {"scale": SCALE, "bias": OFFSET}


def outlined(name: str, **changes):
    config = default_config()
    config.update_from_flattened_dict(
        {"model.name": f"their_networks:{name}", "worker_batch_size": 4, **changes}
    )
    return outline(build_network(in_effect(resolve(config)), 10, (8, 8, 3)))


def roles_of(module, *inputs):
    layers = Layers()
    with nn.intercept_methods(layers.intercept):
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))

    def infer(path, shape):
        known = layers.class_and_role(path)
        return known and known[1]

    return split_roles(variables["params"], infer)[1]


# By hand, of each layer's documentation.
LAYERS = {
    "Conv_0": LINEAR,
    "ConvTranspose_0": LINEAR,
    "ConvLocal_0": LINEAR,
    "LayerNorm_0": NORM,
    "RMSNorm_0": {"scale": SCALE},
    "GroupNorm_0": NORM,
    "InstanceNorm_0": NORM,
    "DenseGeneral_0": LINEAR,
    "Einsum_0": LINEAR,
    "ScanCheckpointBlock_0": {"Dense_0": LINEAR, "BatchNorm_0": NORM},
    "VmapDense_0": LINEAR,
    "JitCheckpointDense_0": LINEAR,
    "Dense_0": LINEAR,
    "WeightNorm_0": {"Dense_0/kernel/scale": SCALE},
    "OptimizedLSTMCell_0": {
        **{f"h{gate}": LINEAR for gate in "ifgo"},
        **{f"i{gate}": {"kernel": KERNEL} for gate in "ifgo"},
    },
    "GRUCell_0": {
        **{f"i{gate}": LINEAR for gate in "rzn"},
        "hr": {"kernel": KERNEL},
        "hz": {"kernel": KERNEL},
        "hn": LINEAR,
    },
    "MultiHeadDotProductAttention_0": {
        **dict.fromkeys(("query", "key", "value", "out"), LINEAR),
        "query_ln": {"scale": SCALE},
        "key_ln": {"scale": SCALE},
    },
    "CheckpointEmbed_0": {"embedding": KERNEL},
}


def test_layers_have_the_roles_of_their_class():
    assert roles_of(their_networks.Layered(), jnp.zeros((1, 8, 8, 4))) == LAYERS


@pytest.mark.parametrize("lift", [lambda cls: cls, nn.remat, nn.jit])
def test_a_layer_that_is_the_whole_network_has_roles(lift):
    assert roles_of(lift(nn.Dense)(3), jnp.zeros((1, 2))) == LINEAR
    assert roles_of(lift(nn.LayerNorm)(), jnp.zeros((1, 2))) == NORM


class Shared(nn.Module):
    """Layers made in `setup`, one of them never called, and a subclass of one."""

    def setup(self):
        class Mine(nn.Dense):
            pass

        self.first, self.table = Mine(3), nn.Embed(3, 3)

    def __call__(self, x):
        return self.first(x) @ self.table.embedding


def test_layers_of_setup_have_roles():
    expected = {"first": LINEAR, "table": {"embedding": KERNEL}}
    assert roles_of(Shared(), jnp.zeros((1, 2))) == expected


class Misleading(nn.Module):
    """Parameters of its own, called as a layer's are, beside layers that are lifted."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(2)(nn.jit(nn.LayerNorm)()(x))
        return x * self.param("kernel", nn.initializers.ones, (1, 2))


def test_names_alone_give_no_role():
    with pytest.raises(ConfigError, match=r"^parameter without a role: kernel of shape \(1, 2\); "):
        roles_of(Misleading(), jnp.zeros((1, 2)))


class Boxed(nn.Module):
    """Says roles in boxes, some within Flax's own, of layers whose class says another."""

    @nn.compact
    def __call__(self, x):
        init, ones = nn.initializers.lecun_normal(), nn.initializers.ones
        partitioned = nn.with_partitioning(init, (None, "model"))
        x = nn.Dense(2, kernel_init=with_role(SCALE, partitioned), name="inside")(x)
        outside = nn.with_partitioning(with_role(OFFSET, init), (None, "model"))
        x = nn.Dense(2, kernel_init=outside, name="outside")(x)
        x = nn.Dense(2, kernel_init=partitioned, name="none")(x)
        return x + self.param("p", with_role(BIAS, ones), (1, 2))


def test_a_box_counts_before_the_class():
    assert roles_of(Boxed(), jnp.zeros((1, 2))) == {
        "inside": {"kernel": SCALE, "bias": BIAS},
        "outside": {"kernel": OFFSET, "bias": BIAS},
        "none": LINEAR,
        "p": BIAS,
    }


# --- model.roles -----------------------------------------------------------------------------


def test_a_parameter_without_a_role_is_named_with_the_ways_out():
    with pytest.raises(ConfigError) as error:
        outlined("Vit")
    assert str(error.value) == (
        "parameter without a role: class_token of shape (1, 1, 8); give each one of 'kernel', "
        "'bias', 'norm scale', 'norm offset': where it is made, by "
        "lbsgd.models.roles.with_role(Role..., init), or by the function of path and shape that "
        "model.roles names"
    )


class Many(nn.Module):
    @nn.compact
    def __call__(self, x):
        return sum(self.param(f"p{i}", nn.initializers.ones, ()) for i in range(5)) * x


def test_of_many_without_a_role_a_few_are_named():
    with pytest.raises(ConfigError, match=r"^parameters without .*: p0 of .* and 2 more; "):
        roles_of(Many(), jnp.zeros(1))


def test_a_function_of_the_config_gives_roles_and_leaves_others_to_the_class():
    found = outlined("Vit", **{"model.roles": "their_networks:vit_roles"})
    assert found.roles == {
        "attention": dict.fromkeys(("query", "key", "value", "out"), LINEAR),
        "class_token": BIAS,
        "head": LINEAR,
        "norm": NORM,
        "patches": LINEAR,
        "position": {"embedding": KERNEL},
    }
    assert found.sources == {
        "nn.DenseGeneral": 8,
        "model.roles": 1,
        "nn.Dense": 2,
        "nn.LayerNorm": 2,
        "nn.Conv": 2,
        "nn.Embed": 1,
    }


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("wrong_role", "of class_token: 'weight' is no role; roles are 'kernel', 'bias', 'norm"),
        ("broken_roles", "IndexError: tuple index out of range"),
        ("no_roles", "there is no 'no_roles' in their_networks; the nearest is "),
    ],
)
def test_what_is_wrong_with_the_function_is_said(function, says):
    with pytest.raises(ConfigError) as error:
        outlined("Vit", **{"model.roles": f"their_networks:{function}"})
    assert says in str(error.value)
    assert str(error.value).startswith(f"model.roles='their_networks:{function}'")


def test_every_role_can_be_named_by_its_word():
    assert list(itertools.chain(Role)) == ["kernel", "bias", "norm scale", "norm offset"]
