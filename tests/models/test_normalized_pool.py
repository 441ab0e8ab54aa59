"""Batch norm, relu and pooling as one function, against the layers by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lbsgd.models.normalization import moments
from lbsgd.models.normalized_pool import normalized_pool

EPSILON = 1e-5
# Of both signs.
SCALES = (1.0, -2.0, 0.5, -0.3)
OFFSETS = (0.0, 1.0, -0.2, 0.1)
SHAPES = [(6, 8, 8), (3, 9, 6), (3, 7, 7), (2, 1, 3), (37, 2, 2)]


def plainly(y, scale, offset):
    found = moments(y, (), scale.dtype)
    factor = jnp.expand_dims(scale * lax.rsqrt(found.variance + EPSILON), (0, 1, 2))
    constant, rest = (jnp.expand_dims(a, (0, 1, 2)) for a in (offset, found.rest))
    z = ((found.centred - rest) * factor + constant).astype(y.dtype)
    z = nn.max_pool(nn.relu(z), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    return z, found.mean, found.variance


def joined(y, scale, offset):
    return normalized_pool(y, scale, offset, EPSILON)


def drawn(shape, mean=0.0, equal=False, dtype=jnp.float64, wide=jnp.float64):
    """Input, parameters and a cotangent; with whole numbers many pixels of a window are equal."""
    random = np.random.default_rng(0)
    y = 2 * random.normal(size=(*shape, len(SCALES)))
    y = (np.round(y) if equal else y) + mean
    n, h, w = shape
    cotangent = random.normal(size=(n, (h + 1) // 2, (w + 1) // 2, len(SCALES)))
    parameters = (jnp.asarray(SCALES, wide), jnp.asarray(OFFSETS, wide))
    return (jnp.asarray(y, dtype), *parameters), jnp.asarray(cotangent, dtype)


def run(f, args, cotangent):
    """Outputs, moments, and the gradients of all arguments."""

    def loss(*args):
        z, mean, variance = f(*args)
        return jnp.sum(z * cotangent), (z, mean, variance)

    gradients, outputs = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*args)
    names = ("z", "mean", "variance", "of y", "of scale", "of offset")
    return dict(zip(names, (*outputs, *gradients)))


def assert_close(found, expected, atol):
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal pixels"])
@pytest.mark.parametrize("mean", [0.0, 2e4], ids=["near 0", "means of 10,000 deviations"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_batch_norm_relu_and_max_pool(x64, shape, mean, equal):
    """Scales of both signs, sides of both parities; the same pixel of several equal ones.

    In float64: numbers of up to 30, of sums of a few hundred, and of 2e4 where means are.
    """
    args, cotangent = drawn(shape, mean, equal)
    assert_close(run(joined, args, cotangent), run(plainly, args, cotangent), 1e-10)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_scale_of_0_has_the_gradient_towards_larger_ones(x64, zero):
    """Its output is max(offset, 0), which has a kink in the scale; all else is as ever."""
    (y, scale, offset), cotangent = drawn((6, 8, 8))
    offset = jnp.abs(offset)
    args = (y, jnp.full_like(scale, zero), offset)
    found, expected = run(joined, args, cotangent), run(plainly, args, cotangent)
    step = 1e-6

    def loss(scale):
        return np.sum(joined(y, scale, offset)[0] * cotangent, axis=(0, 1, 2))

    # Straight on that side as long as nothing is rectified: an offset of 0 is left out.
    slope = (loss(jnp.full_like(scale, step)) - loss(jnp.zeros_like(scale))) / step
    np.testing.assert_allclose(found["of scale"][1:], slope[1:], rtol=0, atol=1e-6)
    for other in (found, expected):
        del other["of scale"]
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("shared", [True, False], ids=["shared scales", "scales of its own"])
def test_lanes_are_batches_of_their_own(x64, shared):
    (y, scale, offset), cotangent = drawn((8, 6, 5))
    lanes, cotangents = (a.reshape(2, 4, *a.shape[1:]) for a in (y, cotangent))
    scales = jnp.stack([scale, scale if shared else scale[::-1]])

    def gradient(y, scale, cotangent):
        return jax.grad(lambda y, s: jnp.sum(joined(y, s, offset)[0] * cotangent), (0, 1))(y, scale)

    along = (0, None, 0) if shared else (0, 0, 0)
    given = scale if shared else scales
    found = jax.jit(jax.vmap(gradient, in_axes=along))(lanes, given, cotangents)
    for lane in range(2):
        expected = run(plainly, (lanes[lane], scales[lane], offset), cotangents[lane])
        for value, name in zip(found, ("of y", "of scale")):
            np.testing.assert_allclose(value[lane], expected[name], rtol=0, atol=1e-12)


def test_bfloat16_is_normalised_in_float32(x64):
    """Its output is rounded once, by up to 2^-8 of its size."""
    args, cotangent = drawn((16, 8, 8), dtype=jnp.bfloat16, wide=jnp.float32)
    exact = tuple(a.astype(jnp.float64) for a in args)
    truth = run(plainly, exact, cotangent.astype(jnp.float64))
    found = run(joined, args, cotangent)
    assert found["z"].dtype == found["of y"].dtype == jnp.bfloat16
    assert found["variance"].dtype == found["of scale"].dtype == jnp.float32
    for name, value in truth.items():
        # Of a gradient the up to four windows of a pixel are added in bfloat16.
        roundings = {"z": 1, "of y": 5}.get(name, 0)
        tolerance = (roundings * 2**-8 + 1e-5) * float(np.abs(value).max())
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), value, rtol=0, atol=tolerance, err_msg=name
        )


def test_nothing_as_large_is_kept_but_the_input(x64):
    args, _ = drawn((6, 16, 16))
    _, back = jax.vjp(lambda *args: joined(*args)[0], *args)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(back))
    assert sizes[-1] == args[0].size
    assert sizes[-2] == args[0].size / 4
