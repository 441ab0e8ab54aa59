"""Batch norm against numpy and PyTorch, in float64 unless precision is the matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lbsgd.models.normalization import (
    BatchNorm,
    GroupNorm,
    add_distance,
    moments,
    subtract_distance,
)
from lbsgd.models.roles import Role, split_roles

EPS = np.finfo(np.float64).eps
EPS32 = np.finfo(np.float32).eps
SHAPES = [(12, 5), (4, 6, 5), (3, 4, 4, 5)]


def inputs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Features of different means and variances."""
    random = np.random.default_rng(seed)
    features = shape[-1]
    return random.normal(size=shape) * np.linspace(0.5, 2, features) + np.arange(features)


def leading(x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))


# --- moments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_are_the_mean_and_the_biased_variance(x64, shape):
    """Sums of up to 48 numbers, squares below a hundred."""
    x = inputs(shape)
    mean, var = moments(jnp.asarray(x))[:2]
    atol = 48 * 100 * EPS
    np.testing.assert_allclose(mean, x.mean(leading(x)), rtol=0, atol=atol)
    np.testing.assert_allclose(var, x.var(leading(x)), rtol=0, atol=atol)


def far_from_zero(shape: tuple[int, ...], ratio: float, seed: int = 0) -> np.ndarray:
    """float32 of deviation 1 about a mean of `ratio`; every sixteenth example is the farthest.

    Its own mean lies sqrt(15) deviations away where there are that many: no part of a sixteenth
    can lie further.
    """
    x = np.random.default_rng(seed).normal(size=shape) * 1e-2
    x[::16] += 4
    x = (x - x.mean(leading(x))) / x.std(leading(x))
    return (x + ratio).astype(np.float32)


@pytest.mark.parametrize("ratio", [1.0, 100.0, 1000.0, 10_000.0])
@pytest.mark.parametrize(
    "shape",
    [
        (32, 7, 7, 5),
        (8, 4, 4, 5),
        (1, 8, 8, 5),
        (1024, 5),
        pytest.param((32, 112, 112, 2), marks=pytest.mark.long),  # the stem of a ResNet-50
    ],
    ids=str,
)
def test_float32_moments_are_accurate_wherever_the_mean_is(shape, ratio):
    """Relative to the variance, within the docstring's bounds.

    That is for sums one after the other; XLA's are shorter, and stay below 1e-4.
    """
    x = far_from_zero(shape, ratio)
    exact = x.astype(np.float64)
    mean, var = moments(jnp.asarray(x))[:2]
    assert var.dtype == jnp.float32
    m = x.size // x.shape[-1]
    bound = min(24 * (m + 4) * EPS32, 1e-4)
    np.testing.assert_allclose(var, exact.var(leading(x)), rtol=bound)
    np.testing.assert_allclose(mean, exact.mean(leading(x)), rtol=2 * EPS32, atol=1e-5)


@pytest.mark.parametrize("ratio", [100.0, 1000.0])
def test_float32_moments_of_synced_workers_are_as_accurate(ratio):
    """Of workers whose means lie apart, as those of one batch of all their examples."""
    x = np.stack([far_from_zero((16, 4, 4, 5), ratio + j, seed=j) for j in range(4)])
    found = jax.vmap(lambda rows: moments(rows, ("lane",)), axis_name="lane")(jnp.asarray(x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found[1], np.tile(exact.var((0, 1, 2, 3)), (4, 1)), rtol=1e-4)


def test_a_batch_norm_far_from_its_running_mean_is_accurate():
    """Output, statistics and gradient in float32, against float64 by hand, at the first update.

    Inputs of 1000 +- 1 are themselves rounded to 6e-5, and so is their mean.
    """
    x = far_from_zero((32, 4, 4, 5), 1000.0)
    cotangent = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    norm = BatchNorm()
    variables = {
        "params": {"scale": jnp.ones(5), "offset": jnp.zeros(5)},
        "batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)},
    }

    def f(x):
        y, left = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y * cotangent), (y, left["batch_stats"])

    gradient, (y, left) = jax.jit(jax.grad(f, has_aux=True))(jnp.asarray(x))
    exact, g = x.astype(np.float64), cotangent.astype(np.float64)
    std = np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    expected = (exact - exact.mean((0, 1, 2))) / std
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(left["var"], exact.var((0, 1, 2)), rtol=1e-4)
    projected = g - g.mean((0, 1, 2)) - expected * (g * expected).mean((0, 1, 2))
    np.testing.assert_allclose(gradient, projected / std, rtol=0, atol=1e-3)


def test_the_variance_of_equal_inputs_is_not_negative():
    """0.1 is not a float32, so the mean of its squares may lie below the square of its mean."""
    for value in np.linspace(0.1, 3, 50, dtype=np.float32):
        var = moments(jnp.full((7, 1), value)).variance
        assert 0 <= var[0] <= 8 * EPS32 * value**2


def test_the_derivatives_of_moments_are_those_of_mean_and_variance(x64):
    """The first and the second; where the sums are shifted to is a constant to both."""
    x = jnp.asarray(inputs((18, 1)))

    def of(mean_and_var):
        mean, var = mean_and_var
        return jnp.sum(jnp.sin(mean) + jnp.cos(var))

    def plain(x):
        mean = jnp.mean(x, 0)
        return of((mean, jnp.mean(jnp.square(x - mean[None]), 0)))

    def ours(x):
        return of(moments(x)[:2])

    for derivative in (jax.grad, jax.hessian):
        np.testing.assert_allclose(
            jax.jit(derivative(ours))(x),
            jax.jit(derivative(plain))(x),
            rtol=0,
            atol=1000 * EPS,
        )


def test_training_takes_two_sums_over_the_batch_forwards_and_two_backwards():
    """Of x - s and its square; of dy and dy (x - s). The shift s is a sum over fewer."""
    x = jnp.ones((32, 4, 4, 3))
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=False)
    variables = {**variables, "params": split_roles(variables["params"])[0]}

    def loss(params, x):
        y = norm.apply({**variables, "params": params}, x, train=True)
        return jnp.vdot(y, jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))

    def sums(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "reduce_sum":
                yield equation.invars[0].aval.size
            for inner in jaxprs_in_params(equation.params):
                yield from sums(inner)

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(variables["params"], x)
    assert list(sums(traced.jaxpr)).count(x.size) == 4


@pytest.mark.parametrize(("examples", "passes"), [(1, False), (2, False), (3, True)])
def test_no_gradient_passes_a_batch_norm_of_one_value_or_two(x64, examples, passes):
    """Of one it leaves 0, of two their order; but for epsilon, which is small beside a variance."""
    x = jnp.asarray(inputs((examples, 5)) * 10)
    cotangent = inputs((examples, 5), seed=2)

    def f(x):
        mean, var = moments(x)[:2]
        return jnp.sum((x - mean[None]) * jax.lax.rsqrt(var + 1e-12)[None] * cotangent)

    assert (np.abs(jax.jit(jax.grad(f))(x)).max() > 1e-3) == passes


# --- the module ------------------------------------------------------------------------------


@pytest.fixture
def variables(x64):
    """Of five features, nothing at 0 or 1."""
    random = np.random.default_rng(1)
    scale, var = random.uniform(0.5, 1.5, (2, 5))
    offset, mean = random.normal(size=(2, 5))
    return {
        "params": {"scale": scale, "offset": offset},
        "batch_stats": {"mean": mean, "var": var},
    }


def float64_norm(**options) -> BatchNorm:
    return BatchNorm(dtype=jnp.float64, param_dtype=jnp.float64, **options)


def by_hand(x, mean, var, params, epsilon=1e-5):
    return (x - mean) / np.sqrt(var + epsilon) * params["scale"] + params["offset"]


def test_it_starts_with_scale_one_offset_zero_and_standard_statistics():
    variables = BatchNorm().init(jax.random.key(0), jnp.ones((2, 3)), train=False)
    params, roles = split_roles(variables["params"])
    expected = {"scale": np.ones(3), "offset": np.zeros(3)}
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert roles == {"scale": Role.NORM_SCALE, "offset": Role.NORM_OFFSET}
    expected = {"mean": np.zeros(3), "var": np.ones(3)}
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], expected)


@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_normalises_by_its_own_batch_and_leaves_the_moments(variables, shape, epsilon):
    """What is left behind is not yet an average with the running statistics."""
    x = inputs(shape)
    norm = float64_norm(epsilon=epsilon)
    y, left = norm.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    mean, var = x.mean(leading(x)), x.var(leading(x))
    expected = by_hand(x, mean, var, variables["params"], epsilon)
    atol = 48 * 100 * EPS
    np.testing.assert_allclose(y, expected, rtol=0, atol=10 * atol)
    np.testing.assert_allclose(left["batch_stats"]["mean"], mean, rtol=0, atol=atol)
    np.testing.assert_allclose(left["batch_stats"]["var"], var, rtol=0, atol=atol)


def test_training_without_mutable_statistics_normalises_alike(variables):
    x = jnp.asarray(inputs((3, 4, 4, 5)))
    y, _ = float64_norm().apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(float64_norm().apply(variables, x, train=True), y)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation_uses_the_running_averages_and_leaves_them(variables, shape):
    x = inputs(shape)
    y, left = float64_norm().apply(variables, jnp.asarray(x), train=False, mutable=["batch_stats"])
    stats = variables["batch_stats"]
    expected = by_hand(x, stats["mean"], stats["var"], variables["params"])
    np.testing.assert_allclose(y, expected, rtol=0, atol=1000 * EPS)
    jax.tree.map(np.testing.assert_array_equal, left["batch_stats"], stats)


def test_bfloat16_is_for_the_output_only():
    """Moments of a bfloat16 input are computed and kept in float32."""
    x = jnp.asarray(inputs((64, 5)), jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=False)
    variables = {**variables, "params": split_roles(variables["params"])[0]}
    y, left = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    for name, expected in (("mean", exact.mean(0)), ("var", exact.var(0))):
        found = left["batch_stats"][name]
        assert found.dtype == jnp.float32
        # Sums of 64 numbers below 100; in bfloat16 this would be off by more than 1e-2.
        np.testing.assert_allclose(found, expected, rtol=0, atol=64 * 100 * EPS32)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_the_gradient_is_pytorch_s(variables, train):
    """With respect to inputs, scale and offset, for a random cotangent."""
    torch = pytest.importorskip("torch")
    x, cotangent = inputs((3, 4, 4, 5)), inputs((3, 4, 4, 5), seed=2)

    def f(params, x):
        stats = variables["batch_stats"]
        y = float64_norm().apply({"params": params, "batch_stats": stats}, x, train=train)
        return jnp.sum(y * cotangent)

    of_params, of_x = jax.jit(jax.grad(f, (0, 1)))(variables["params"], x)
    theirs = {
        "x": torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True),
        **{k: torch.tensor(v, requires_grad=True) for k, v in variables["params"].items()},
    }
    mean, var = (torch.tensor(variables["batch_stats"][k]) for k in ("mean", "var"))
    y = torch.nn.functional.batch_norm(
        theirs["x"], mean, var, theirs["scale"], theirs["offset"], training=train, eps=1e-5
    )
    (y * torch.tensor(np.moveaxis(cotangent, -1, 1))).sum().backward()
    expected = {name: tensor.grad.numpy() for name, tensor in theirs.items()}
    # Sums of 48 products of numbers below ten, a few one after the other.
    atol = 48 * 100 * 10 * EPS
    np.testing.assert_allclose(of_x, np.moveaxis(expected["x"], 1, -1), rtol=0, atol=atol)
    for name in ("scale", "offset"):
        np.testing.assert_allclose(of_params[name], expected[name], rtol=0, atol=atol)


# --- synced ----------------------------------------------------------------------------------


@pytest.mark.long
def test_synced_workers_are_one_batch_of_all_their_examples(variables):
    """Over a vmap axis: outputs, moments, and the gradient of a sum over the workers."""
    workers = 4
    x, cotangent = inputs((workers, 6, 3, 5)), inputs((workers, 6, 3, 5), seed=2)
    stats = variables["batch_stats"]

    def normalise(params, x, axis_names=()):
        norm = float64_norm(axis_names=axis_names)
        variables = {"params": params, "batch_stats": stats}
        y, left = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        return y, left["batch_stats"]

    def synced(params, x):
        y, left = jax.vmap(lambda rows: normalise(params, rows, ("lane",)), axis_name="lane")(x)
        return jnp.sum(y * cotangent), (y, left)

    def merged(params, x):
        y, left = normalise(params, x.reshape(-1, 3, 5))
        y = y.reshape(x.shape)
        return jnp.sum(y * cotangent), (y, left)

    gradients, (y, left) = jax.grad(synced, (0, 1), has_aux=True)(variables["params"], x)
    expected, (y_merged, left_merged) = jax.grad(merged, (0, 1), has_aux=True)(
        variables["params"], x
    )
    # Sums of 72 products of numbers below ten, a few one after the other.
    atol = 72 * 100 * 10 * EPS
    np.testing.assert_allclose(y, y_merged, rtol=0, atol=atol)
    for name, value in left_merged.items():
        for worker in range(workers):
            np.testing.assert_allclose(left[name][worker], value, rtol=0, atol=atol)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), gradients, expected
    )
    # And per-worker statistics would have been something else.
    alone = jax.vmap(lambda rows: normalise(variables["params"], rows)[0])(x)
    assert np.abs(alone - y).max() > 0.1


# --- the total variance ----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("distance", [0.0, 3.0], ids=["running mean near", "running mean far"])
def test_distances_averaged_make_the_variance_of_all_examples(x64, workers, distance):
    """mean(var) + var(mean), which is the variance of the workers' examples put together."""
    random = np.random.default_rng(0)
    layers = {"stem": 5, "block": 3}
    x = {
        layer: random.normal(size=(workers, 16, n)) + random.normal(size=(workers, 1, n))
        for layer, n in layers.items()
    }

    def nested(stats):
        return {"stem": stats["stem"], "stage": {"block": {"norm": stats["block"]}}}

    running = nested(
        {layer: {"mean": np.full(n, distance), "var": np.ones(n)} for layer, n in layers.items()}
    )
    of_workers = [
        nested({layer: {"mean": v[j].mean(0), "var": v[j].var(0)} for layer, v in x.items()})
        for j in range(workers)
    ]
    ours = jax.tree.map(lambda _: True, running)
    left = [add_distance(stats, running, ours) for stats in of_workers]
    averaged = jax.tree.map(lambda *leaves: sum(leaves) / workers, *left)
    found = subtract_distance(averaged, running, ours)
    # About workers + 5 roundings of squares below (3 + 5)^2.
    atol = (workers + 5) * 64 * EPS
    for layer, stats in {"stem": found["stem"], "block": found["stage"]["block"]["norm"]}.items():
        together = x[layer].reshape(-1, layers[layer])
        within, means = x[layer].var(1), x[layer].mean(1)
        np.testing.assert_allclose(stats["mean"], together.mean(0), rtol=0, atol=atol)
        expected = within.mean(0) + means.var(0)
        np.testing.assert_allclose(stats["var"], expected, rtol=0, atol=atol)
        np.testing.assert_allclose(stats["var"], together.var(0), rtol=0, atol=atol)


def test_with_one_worker_far_away_distances_cancel(x64):
    """For any running mean: the result is the worker's own moments."""
    stats = {"mean": jnp.asarray([5.0, -2.0]), "var": jnp.asarray([1.0, 0.5])}
    running = {"mean": jnp.asarray([100.0, 0.0]), "var": jnp.ones(2)}
    ours = {"mean": True, "var": True}
    found = subtract_distance(add_distance(stats, running, ours), running, ours)
    # Squares of up to 100 are added and taken off again.
    np.testing.assert_allclose(found["var"], stats["var"], rtol=0, atol=4 * 100**2 * EPS)
    np.testing.assert_array_equal(found["mean"], stats["mean"])


def test_distances_are_of_the_step_s_own_moments_alone(x64):
    """What a module has moved itself, or keeps beside them, is left as it is."""
    layer = {"mean": jnp.asarray([5.0, -2.0]), "var": jnp.asarray([1.0, 0.5])}
    stats = {"ours": layer, "stock": layer, "sigma": jnp.ones(3), "pair": (layer, jnp.ones(()))}
    running = jax.tree.map(jnp.zeros_like, stats)
    of_step = jax.tree.map(lambda _: False, stats) | {"ours": {"mean": True, "var": True}}
    for change, var in ((add_distance, [26.0, 4.5]), (subtract_distance, [-24.0, -3.5])):
        found = change(stats, running, of_step)
        np.testing.assert_array_equal(found["ours"]["var"], var)
        for name in ("stock", "sigma", "pair"):
            jax.tree.map(np.testing.assert_array_equal, found[name], stats[name])


# --- group norm ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (13, 1), (16, 8), (48, 24), (64, 32), (80, 20)],
)
def test_group_norm_has_up_to_32_groups_of_two_channels_or_more(channels, groups):
    assert GroupNorm.groups(channels) == groups
    assert GroupNorm.groups(64 * channels) == 32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_group_norm_is_of_each_example_and_group(dtype):
    """By numpy; in float32 as accurate for a mean of 1000 deviations, and its output of `dtype`."""
    x = (inputs((3, 4, 4, 6)) * 0.1 + 1000 * (dtype == jnp.float32)).astype(np.float32)
    x = np.asarray(jnp.asarray(x, dtype), np.float64)
    norm = GroupNorm(dtype=dtype)
    params = {"scale": jnp.linspace(0.5, 2, 6), "offset": jnp.linspace(-1, 1, 6)}
    params = {"norm": {"scale": params["scale"], "bias": params["offset"]}}
    y = norm.apply({"params": params}, jnp.asarray(x, dtype), train=True)
    assert y.dtype == dtype
    grouped = x.reshape(3, 16, 3, 2)
    mean, var = (f(axis=(1, 3), keepdims=True) for f in (grouped.mean, grouped.var))
    normal = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    expected = normal * np.linspace(0.5, 2, 6) + np.linspace(-1, 1, 6)
    # The mean is rounded, by a thousandth of the deviation; bfloat16 has 8 bits.
    atol = 2e-3 if dtype == jnp.float32 else 2**-8 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=0, atol=atol)


def test_group_norm_starts_with_scale_one_and_offset_zero():
    variables = GroupNorm().init(jax.random.key(0), jnp.ones((2, 3, 3, 4)), train=False)
    params, roles = split_roles(variables["params"])
    assert "batch_stats" not in variables
    assert roles == {"norm": {"scale": Role.NORM_SCALE, "bias": Role.NORM_OFFSET}}
    np.testing.assert_array_equal(params["norm"]["scale"], np.ones(4))
    np.testing.assert_array_equal(params["norm"]["bias"], np.zeros(4))
