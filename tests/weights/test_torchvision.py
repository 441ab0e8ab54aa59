"""The names and layouts of torchvision and timm, against their own networks in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from torch_resnet import arrays_of, load_into, torch, torch_resnet

from lbsgd.models.networks import build_model
from lbsgd.system.errors import ConfigError
from lbsgd.weights.torchvision import (
    from_torchvision,
    library_of,
    to_torchvision,
    torchvision_network,
)

CLASSES, SIZE = 10, 32
LAYERS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}
NETWORKS = [
    pytest.param(name, marks=[] if name == "resnet18" else pytest.mark.long) for name in LAYERS
]
# ResNet-D, which timm alone has.
OF_TIMM = [
    pytest.param(f"{name}d", marks=[] if name == "resnet18" else pytest.mark.long)
    for name in LAYERS
]
LIBRARIES = ("torchvision", "timm")
# Products in the longest sum: 512 channels of 3 x 3.
LONGEST_SUM = 9 * 512


def images(dtype, size=SIZE):
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(dtype)


def ours(name, variables, dtype, size=SIZE):
    net = build_model(name, num_classes=CLASSES, dtype=dtype, param_dtype=dtype)
    variables = jax.tree.map(lambda x: x.astype(dtype), variables)
    apply = jax.jit(functools.partial(net.apply, train=False))
    return np.asarray(apply(variables, images(dtype, size)))


def theirs(net, dtype, size=SIZE):
    net = net.to(torch.float64 if dtype == jnp.float64 else torch.float32)
    with torch.no_grad():
        return net(torch.tensor(images(dtype, size).transpose(0, 3, 1, 2))).numpy()


def assert_equal_outputs(found, expected, rtol):
    assert found.dtype == expected.dtype
    largest = np.abs(expected).max()
    assert expected.std() > 0.01 * largest  # of networks that tell images and classes apart
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * largest)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same_there_and_here(x64, name):
    """In both directions, to 1e-10 in float64, where an epsilon of 1e-5 too much is 1e-6."""
    net = torch_resnet("torchvision", name, CLASSES).double()
    state = arrays_of(net)
    variables = from_torchvision(state)
    assert torchvision_network(variables) == name
    expected = theirs(net, jnp.float64)
    assert_equal_outputs(ours(name, variables, jnp.float64), expected, 1e-10)
    back = to_torchvision(variables)
    assert list(back) == list(state)
    timm = torch_resnet("timm", name, CLASSES, seed=2).double()
    assert not np.allclose(theirs(timm, jnp.float64), expected)
    load_into(timm, back)
    assert_equal_outputs(theirs(timm, jnp.float64), expected, 1e-10)


@pytest.mark.parametrize("size", [SIZE, pytest.param(39, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", OF_TIMM)
def test_a_resnet_d_computes_the_same_there_and_here(x64, name, size):
    """As above; of 39 pixels each stage has an odd side but the last: 10, 5, 3, 2."""
    net = torch_resnet("timm", name, CLASSES).double()
    state = arrays_of(net)
    variables = from_torchvision(state)
    assert (torchvision_network(variables), library_of(name)) == (name, "timm")
    expected = theirs(net, jnp.float64, size)
    assert_equal_outputs(ours(name, variables, jnp.float64, size), expected, 1e-10)
    back = to_torchvision(variables)
    assert list(back) == list(state)
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], 0 if key.endswith("tracked") else array)


@pytest.mark.parametrize("name", [NETWORKS[0], pytest.param("resnet50", marks=pytest.mark.long)])
def test_a_network_computes_the_same_in_float32(name):
    """To rounding, which adds up like a random walk in a sum, and from layer to layer at worst."""
    net = torch_resnet("torchvision", name, CLASSES)
    variables = from_torchvision(arrays_of(net))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    rtol = LAYERS[name] * np.sqrt(LONGEST_SUM) * np.finfo(np.float32).eps
    assert_equal_outputs(ours(name, variables, jnp.float32), theirs(net, jnp.float32), rtol)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        *(
            pytest.param(library, *p.values, marks=p.marks)
            for library in LIBRARIES
            for p in NETWORKS
        ),
        *(pytest.param("timm", *p.values, marks=p.marks) for p in OF_TIMM),
    ],
)
def test_names_shapes_and_types_are_those_of_the_library(library, name):
    with torch.device("meta"):
        net = torch_resnet(library, name, CLASSES)
    expected = {key: (tuple(x.shape), x.dtype) for key, x in net.state_dict().items()}
    state = to_torchvision(zeros(name))
    # Of each of its names, in its order: what has no value of ours there is a counter.
    assert [*state] == [*expected]
    for key, (shape, dtype) in expected.items():
        assert (state[key].shape, torch.tensor(state[key]).dtype) == (shape, dtype), key


def zeros(name, channels=3, **options):
    """Variables of a network, all 0; they share one value, and take no memory."""
    net = build_model(name, num_classes=CLASSES, **options)
    image = jnp.zeros((1, SIZE, SIZE, channels))
    shapes = jax.eval_shape(lambda: nn.meta.unbox(net.init(jax.random.key(0), image, train=False)))
    return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet20", {}),
        ("resnet18", {"normalization": "group"}),
        ("resnet18", {"normalization": "none"}),
        ("resnet18", {"width": 0.25}),
        ("resnet18", {"channels": 1}),
        ("resnet50", {"skip_connections": False, "zero_init_residual": False}),
    ],
)
def test_what_torchvision_does_not_have_is_refused_in_a_line(name, options):
    with pytest.raises(ConfigError, match="torchvision") as raised:
        to_torchvision(zeros(name, **options))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("change", ["one more", "one less", "another name"])
def test_a_state_dict_of_no_resnet_is_refused(change):
    state = to_torchvision(zeros("resnet18"))
    if change != "one more":
        del state["layer1.0.conv1.weight"]
    if change != "one less":
        state["layer9.weight"] = np.zeros(3)
    with pytest.raises(ConfigError, match="resnet18, resnet34"):
        from_torchvision(state)
