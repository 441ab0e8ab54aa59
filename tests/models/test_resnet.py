"""Residual networks: sizes, shapes and initialisation. Most of it by shapes, without compiling."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.models.networks import build_model
from lbsgd.models.normalization import BatchNorm
from lbsgd.models.resnet import IMAGENET, Block, Conv, average_pool, named_architecture
from lbsgd.models.roles import split_roles
from lbsgd.system.errors import ConfigError


def flat(tree) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def key(seed: int) -> jax.Array:
    """Of a generator that compiles several times faster than the default one."""
    return jax.random.key(seed, impl="rbg")


def initialise(module, x) -> dict:
    """Variables of a module without their boxes, at random."""
    variables = jax.jit(functools.partial(module.init, train=False))(key(0), x)
    return {**variables, "params": split_roles(variables["params"])[0]}


def shapes(module, x) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by path."""
    init = functools.partial(module.init, train=False)
    params, _ = split_roles(jax.eval_shape(init, jax.random.key(0), x)["params"])
    return {path: leaf.shape for path, leaf in flat(params).items()}


def count(name: str, num_classes: int, channels: int = 3, **options) -> int:
    x = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    found = shapes(build_model(name, num_classes=num_classes, **options), x)
    return sum(int(np.prod(shape)) for shape in found.values())


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnet50d", 25_576_264),
    ],
)
def test_parameters_of_the_imagenet_networks(name, parameters):
    """The counts of torchvision's networks of these names; of ResNet-D, timm's."""
    assert count(name, 1000) == parameters


def cifar_parameters(depth: int, width: int = 16, classes: int = 10, channels: int = 3) -> int:
    """In closed form: 2n convolutions a stage, the first after a stage change from half as many.

    Each convolution comes with a scale and an offset a channel; shortcuts have no parameters.
    """
    n = (depth - 2) // 6
    total = 9 * channels * width + 2 * width
    for stage in range(3):
        c = width * 2**stage
        before = c if stage == 0 else c // 2
        total += 9 * before * c + (2 * n - 1) * 9 * c * c + 2 * n * 2 * c
    return total + 4 * width * classes + classes


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_parameters_of_the_cifar_networks(depth):
    if depth == 20:
        assert cifar_parameters(20) == 269_722
    assert count(f"cifar_resnet{depth}", 10) == cifar_parameters(depth)


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_parameters_of_a_wider_cifar_network(width):
    expected = cifar_parameters(20, round(16 * width), classes=7, channels=1)
    assert count("cifar_resnet20", 7, channels=1, width=width) == expected


@pytest.mark.parametrize("width", [0.25, 2.0])
@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18", "resnet50", "resnet50d"])
def test_the_width_multiplies_every_channel_count(name, width):
    """All but the channels of the images and the classes."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    reference = shapes(build_model(name, num_classes=10), x)
    found = shapes(build_model(name, num_classes=10, width=width), x)
    assert found.keys() == reference.keys()
    for path, shape in reference.items():
        *kernel, out = shape
        if path.startswith("classifier"):
            expected = (*(round(width * c) for c in kernel), out)
        elif path.startswith(("stem_conv/", "stem_conv1/")):
            expected = (*kernel, round(width * out))
        elif len(shape) == 4:
            expected = (*kernel[:2], round(width * kernel[2]), round(width * out))
        else:
            expected = (round(width * out),)
        assert found[path] == expected, path


def test_the_narrowest_network_has_one_channel():
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    found = shapes(build_model("cifar_resnet8", num_classes=10, width=1e-3), x)
    assert found["stem_conv/conv/kernel"] == (3, 3, 1, 1)


def test_the_cifar_network_of_depth_1202():
    """He et al.: 19.4 million parameters."""
    assert named_architecture("cifar_resnet1202").blocks == (200, 200, 200)
    assert round(cifar_parameters(1202) / 1e6, 1) == 19.4


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("resnet20", ["cifar_resnet20"]),
        ("resnet1202", ["cifar_resnet1202"]),
        ("resnet21", ["cifar_resnet20", "cifar_resnet26"]),
        ("cifar_resnet18", ["cifar_resnet14", "cifar_resnet20"]),
        ("cifar_resnet57", ["cifar_resnet56", "cifar_resnet62"]),
        ("cifar_resnet2", ["cifar_resnet8"]),
        ("cifar_resnet1", ["cifar_resnet8"]),
        ("cifar_resnet99999998", ["cifar_resnet9998"]),
        ("cifar_resnet020", []),
        ("cifar_resnet", []),
        ("CIFAR_resnet20", []),
        ("vgg" + "9" * 1000, []),
    ],
)
def test_a_name_that_is_none_tells_the_nearest(name, takes):
    """The networks of CIFAR have depths 6n + 2, n > 0; and each has one name."""
    with pytest.raises(ConfigError) as error:
        build_model(name, num_classes=10)
    assert len(str(error.value)) < 300
    _, _, after = str(error.value).partition("for CIFAR there is ")
    assert after == " or ".join(takes)
    for take in takes:
        named_architecture(take)


def test_an_unknown_network_lists_the_known():
    with pytest.raises(ConfigError, match="resnet51") as error:
        build_model("resnet51", num_classes=10)
    for name in IMAGENET:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("Mixer", ""),
        ("zoo.Mixer", "; did you mean 'zoo:Mixer'?"),
        ("my.zoo.Mixer", "; did you mean 'my.zoo:Mixer'?"),
        ("zoo.", ""),
        (".Mixer", ""),
        ("resnet-1.5", ""),
    ],
)
def test_an_unknown_network_may_be_another_s(name, end):
    with pytest.raises(ConfigError) as error:
        build_model(name, num_classes=10)
    assert str(error.value).endswith(f', or "package.module:name"{end}')


# --- shapes and types inside -----------------------------------------------------------------


def activations(model, image: tuple[int, ...], train: bool) -> tuple[dict, jax.ShapeDtypeStruct]:
    """Shapes and types of what each layer gives out, the statistics, and the logits."""
    x = jax.ShapeDtypeStruct(image, model.param_dtype)
    boxed = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x)
    variables = {**boxed, "params": split_roles(boxed["params"])[0]}
    apply = functools.partial(
        model.apply,
        train=train,
        capture_intermediates=True,
        mutable=["intermediates", "batch_stats"],
    )
    logits, left = jax.eval_shape(apply, variables, x)
    return {**left, "params": variables["params"]}, logits


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        pytest.param("resnet101", marks=pytest.mark.long),
        pytest.param("resnet152", marks=pytest.mark.long),
    ],
)
def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution(name):
    """Version 1.5: the first 1x1 convolution of a stage still sees the full resolution."""
    left, _ = activations(build_model(name, num_classes=10), (1, 64, 64, 3), train=False)
    inside = left["intermediates"]
    for stage, (before, after) in enumerate([(16, 16), (16, 8), (8, 4), (4, 2)], 1):
        block = inside[f"stage{stage}_block1"]
        sizes = [block[f"conv{i}"]["__call__"][0].shape[1:3] for i in (1, 2, 3)]
        assert sizes == [(before, before), (after, after), (after, after)]
        assert block["shortcut_conv"]["__call__"][0].shape[1:3] == (after, after)
        kernels = left["params"][f"stage{stage}_block1"]
        assert [kernels[f"conv{i}"]["conv"]["kernel"].shape[0] for i in (1, 2, 3)] == [1, 3, 1]


@pytest.mark.parametrize(
    ("name", "image", "stages"),
    [
        ("resnet18", 224, [(56, 64), (28, 128), (14, 256), (7, 512)]),
        ("resnet50", 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        ("resnet50d", 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        ("cifar_resnet20", 32, [(32, 16), (16, 32), (8, 64)]),
    ],
)
def test_resolution_and_channels_of_each_stage(name, image, stages):
    """Table 1 and section 4.2 of He et al. 2015."""
    left, logits = activations(build_model(name, num_classes=10), (2, image, image, 3), train=False)
    blocks = named_architecture(name).blocks
    for stage, (size, channels) in enumerate(stages, 1):
        out = left["intermediates"][f"stage{stage}_block{blocks[stage - 1]}"]["__call__"][0]
        assert out.shape == (2, size, size, channels)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18", "resnet50"])
def test_bfloat16_is_for_activations_only(name, train):
    """Parameters, batch-norm statistics and logits are float32."""
    model = build_model(name, num_classes=10, dtype=jnp.bfloat16)
    left, logits = activations(model, (2, 32, 32, 3), train)
    assert logits.dtype == jnp.float32
    for collection in ("params", "batch_stats"):
        assert {leaf.dtype for leaf in jax.tree.leaves(left[collection])} == {jnp.dtype("float32")}
    inside = flat(left["intermediates"])
    final = {path for path in inside if path.startswith(("classifier/", "__call__/"))}
    assert len(final) == 2
    for path, leaf in inside.items():
        assert leaf.dtype == (jnp.float32 if path in final else jnp.bfloat16), path


# --- the start of residual blocks ------------------------------------------------------------


# Input of the blocks: of both signs, so that a missing ReLU shows.
X = np.random.default_rng(0).normal(size=(2, 6, 6, 8)).astype(np.float32)
# Features, stride, bottleneck and shortcut of blocks that are the identity on X, or are not.
IDENTITIES = {"two 3x3": (8, 1, False, "pad"), "bottleneck": (2, 1, True, "projection")}
PADS = {"pad": (16, 2, False, "pad"), "pad, same size": (16, 1, False, "pad")}
PROJECTIONS = {
    "two 3x3": (16, 2, False, "projection"),
    "bottleneck": (4, 2, True, "projection"),
    "bottleneck, same size": (4, 1, True, "projection"),
    "fewer pixels, equal channels": (2, 2, True, "projection"),
    "pooled": (4, 2, True, "pooled_projection"),
    "pooled, same size": (4, 1, True, "pooled_projection"),
}


@functools.cache
def block(arguments: tuple, **options: bool) -> tuple[Block, dict]:
    """A block and its variables at the start."""
    options = {"skip_connections": True, "zero_init_residual": True, **options}
    module = Block(*arguments, conv=Conv, norm=BatchNorm, **options)
    return module, initialise(module, X)


def output(module_and_variables: tuple[Block, dict], train: bool) -> np.ndarray:
    module, variables = module_and_variables
    out, _ = module.apply(variables, jnp.asarray(X), train=train, mutable=["batch_stats"])
    return np.asarray(out)


def padded_shortcut(x: np.ndarray, out: tuple[int, ...]) -> np.ndarray:
    """Option A of He et al.: every second pixel, and zeros for the new channels."""
    stride = x.shape[1] // out[1]
    expected = np.zeros(out, np.float32)
    expected[..., : x.shape[-1]] = x[:, ::stride, ::stride]
    return expected


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("arguments", IDENTITIES.values(), ids=IDENTITIES)
def test_a_block_starts_as_the_identity(arguments, train):
    """But for its ReLU; exactly, as its branch ends in a scale of 0."""
    np.testing.assert_array_equal(output(block(arguments), train), np.maximum(X, 0))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("arguments", PADS.values(), ids=PADS)
def test_a_block_that_pads_starts_as_its_shortcut(arguments, train):
    found = output(block(arguments), train)
    assert found.shape[1] == X.shape[1] // arguments[1]
    np.testing.assert_array_equal(found, np.maximum(padded_shortcut(X, found.shape), 0))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("arguments", PROJECTIONS.values(), ids=PROJECTIONS)
def test_a_block_that_projects_starts_as_its_shortcut(arguments, train):
    """A 1x1 convolution and batch norm, here by numpy."""
    _, variables = block(arguments)
    kernel = np.asarray(variables["params"]["shortcut_conv"]["conv"]["kernel"], np.float64)[0, 0]
    stride = arguments[1]
    seen = X.astype(np.float64)[:, ::stride, ::stride]
    if arguments[3] == "pooled_projection" and stride == 2:
        seen = X.astype(np.float64).reshape(2, 3, 2, 3, 2, 8).mean((2, 4))
    y = seen @ kernel
    mean, var = (y.mean((0, 1, 2)), y.var((0, 1, 2))) if train else (0.0, 1.0)
    expected = np.maximum((y - mean) / np.sqrt(var + 1e-5), 0)
    # Sums of 8 products and moments of at most 72 float32 numbers, all of order 1.
    atol = 100 * 6e-8 * np.abs(expected).max()
    np.testing.assert_allclose(output(block(arguments), train), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (1, 2), (1, 1)])
def test_an_average_of_pixels_at_an_odd_edge_is_of_those_that_are_there(height, width, dtype):
    x = np.random.default_rng(0).integers(-8, 8, (2, height, width, 3)).astype(np.float64)
    found = average_pool(jnp.asarray(x, dtype))
    assert found.dtype == dtype
    assert found.shape == (2, -(-height // 2), -(-width // 2), 3)
    for row, column in np.ndindex(found.shape[1:3]):
        part = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        # Sums of four such whole numbers are exact.
        np.testing.assert_array_equal(found[:, row, column], part.mean((1, 2)))


@pytest.mark.parametrize(
    "arguments", [*IDENTITIES.values(), *PADS.values(), *PROJECTIONS.values()], ids=str
)
def test_without_zero_init_a_block_starts_with_a_branch(arguments):
    """The last scale is one, and the block is not its shortcut: the branch has variance 1."""
    ordinary = block(arguments, zero_init_residual=False)
    difference = np.abs(output(ordinary, True) - output(block(arguments), True))
    assert np.mean(difference > 0.1) > 0.25
    last = ordinary[1]["params"]["norm3" if arguments[2] else "norm2"]["scale"]
    np.testing.assert_array_equal(last, np.ones_like(last))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("cifar_resnet8", {}, id="cifar_resnet8"),
        pytest.param("resnet50", {"width": 1 / 16}, id="resnet50", marks=pytest.mark.long),
    ],
)
def test_only_the_last_scale_of_each_block_starts_at_zero(name, options):
    """And in the whole network each block starts as its shortcut."""
    model = build_model(name, num_classes=10, **options)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = initialise(model, images)
    last = "norm3/scale" if named_architecture(name).bottleneck else "norm2/scale"
    for path, value in flat(variables["params"]).items():
        if path.endswith("scale"):
            expected = 0.0 if path.endswith(last) else 1.0
            np.testing.assert_array_equal(value, np.full_like(value, expected), err_msg=path)
        elif path.endswith(("offset", "bias")):
            assert not np.any(value), path
    apply = functools.partial(model.apply, train=True, capture_intermediates=True)
    _, left = jax.jit(functools.partial(apply, mutable=["batch_stats", "intermediates"]))(
        variables, images
    )
    inside = left["intermediates"]
    outputs = [inside[name]["__call__"][0] for name in sorted(inside) if name.startswith("stage")]
    if named_architecture(name).stem == "small":
        outputs.insert(0, np.maximum(inside["stem_norm"]["__call__"][0], 0))
    checked = 0
    for before, after in itertools.pairwise(outputs):
        # What comes out of a block is rectified, so the shortcut is as well. Projections have
        # their own test.
        if before.shape == after.shape or named_architecture(name).shortcut == "pad":
            expected = padded_shortcut(np.asarray(before), after.shape)
            np.testing.assert_array_equal(after, expected)
            checked += 1
    assert checked == {"cifar_resnet8": 3, "resnet50": 12}[name]


# --- without skips ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18", "resnet50"])
def test_without_skip_connections_the_shortcuts_have_no_parameters(name):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    whole = shapes(build_model(name, num_classes=10), x)
    options = {"skip_connections": False, "zero_init_residual": False}
    plain = shapes(build_model(name, num_classes=10, **options), x)
    assert plain == {path: s for path, s in whole.items() if "shortcut" not in path}
    assert len(whole) - len(plain) == {"cifar_resnet8": 0, "resnet18": 9, "resnet50": 12}[name]


@pytest.mark.parametrize("arguments", [IDENTITIES["two 3x3"], PADS["pad"]], ids=str)
def test_without_skip_connections_nothing_is_added(arguments):
    """A branch that ends in a scale of 0 then gives 0, and otherwise the branch alone."""
    assert not np.any(output(block(arguments, skip_connections=False), False))
    plain, variables = block(arguments, skip_connections=False, zero_init_residual=False)
    found, left = plain.apply(
        variables,
        jnp.asarray(X),
        train=False,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    branch = left["intermediates"]["norm2"]["__call__"][0]
    assert np.any(found)
    np.testing.assert_array_equal(found, np.maximum(branch, 0))


def test_without_skip_connections_blocks_cannot_start_as_the_identity():
    with pytest.raises(ConfigError, match="zero_init_residual=False"):
        build_model("cifar_resnet8", num_classes=10, skip_connections=False)


# --- the start of scales ---------------------------------------------------------------------


@pytest.mark.parametrize("zero_init", [False, pytest.param(True, marks=pytest.mark.long)])
def test_scales_start_around_one_but_for_those_that_start_at_zero(wide_init, zero_init):
    """N(1, 0.05^2), by the seed; kernels are those without."""
    options = {"num_classes": 1000, "width": 4.0, "norm_scale_std": 0.05}
    x, plain = jnp.zeros((1, 8, 8, 3)), flat(wide_init(0))
    model = build_model("cifar_resnet8", zero_init_residual=zero_init, **options)
    init = jax.jit(functools.partial(model.init, train=False))
    first, other = (flat(split_roles(init(key(seed), x)["params"])[0]) for seed in (0, 1))
    drawn = []
    for path, value in first.items():
        if path.endswith("norm2/scale") and zero_init:
            assert not np.any(value), path
        elif path.endswith("scale"):
            drawn.append(np.asarray(value, np.float64) - 1)
            # Two of 64 float32 numbers may coincide.
            assert np.mean(value == other[path]) < 0.05, path
        else:
            np.testing.assert_array_equal(value, plain[path], err_msg=path)
    assert len(drawn) == (4 if zero_init else 7)
    assert_normal(np.concatenate(drawn), 0.05)


# --- the start of kernels --------------------------------------------------------------------


def assert_normal(kernel, std: float) -> None:
    """N(0, std^2), by its mean, its standard deviation and its tails.

    The mean of m numbers has a standard error of std / sqrt(m), their standard deviation one of
    std / sqrt(2 m); five of them are exceeded once in two million. A normal distribution has 4.55
    percent outside two deviations, one truncated there (as Flax's truncated_normal) none.
    """
    m = kernel.size
    assert abs(np.mean(kernel)) < 5 * std / np.sqrt(m)
    assert abs(np.std(kernel) / std - 1) < 5 / np.sqrt(2 * m)
    outside = np.mean(np.abs(kernel) > 2 * std)
    assert abs(outside - 0.0455) < 5 * np.sqrt(0.0455 / m)


@pytest.fixture(scope="module")
def wide_init():
    """ResNet-8 four times as wide, seed -> params: kernels of 1,728 to 589,824 numbers."""
    model = build_model("cifar_resnet8", num_classes=1000, width=4.0)
    init = jax.jit(functools.partial(model.init, train=False))
    x = jnp.zeros((1, 8, 8, 3))
    return lambda seed: split_roles(init(key(seed), x)["params"])[0]


@pytest.fixture(scope="module")
def wide_params(wide_init):
    return wide_init(0)


def test_convolutions_start_he_normal_by_fan_out(wide_params):
    """std = sqrt(2 / (k k c_out)); stages that double the channels tell it from fan-in."""
    kernels = [k for k in flat(wide_params).values() if k.ndim == 4]
    assert len(kernels) == 7
    for kernel in kernels:
        height, width, _, out = kernel.shape
        assert_normal(np.asarray(kernel, np.float64), np.sqrt(2 / (height * width * out)))


@pytest.mark.parametrize(("features", "size", "channels"), [(64, 7, 16), (512, 1, 64)])
def test_other_sizes_of_convolution_start_he_normal_by_fan_out(features, size, channels):
    x = jnp.zeros((1, 8, 8, channels))
    params, _ = split_roles(Conv(features, size).init(jax.random.key(0), x)["params"])
    kernel = np.asarray(params["conv"]["kernel"], np.float64)
    assert_normal(kernel, np.sqrt(2 / (size * size * features)))


def test_the_classifier_starts_at_a_hundredth(wide_params):
    """N(0, 0.01^2), bias 0."""
    assert_normal(np.asarray(wide_params["classifier"]["kernel"], np.float64), 0.01)
    assert not np.any(wide_params["classifier"]["bias"])


def test_the_seed_decides_the_start(wide_init, wide_params):
    """And layers of one shape start differently."""
    first, again, other = (flat(params) for params in (wide_params, wide_init(0), wide_init(1)))
    kernels = [path for path, leaf in first.items() if leaf.ndim > 1]
    for path in kernels:
        np.testing.assert_array_equal(first[path], again[path])
        # Of many float32 numbers a few may coincide.
        assert np.mean(first[path] == other[path]) < 1e-3, path
    one, two = (first[f"stage1_block1/conv{i}/conv/kernel"] for i in (1, 2))
    assert np.mean(one == two) < 1e-3
