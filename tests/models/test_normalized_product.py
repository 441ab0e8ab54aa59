"""A 1x1 convolution normalised by the moments of its inputs, against the layers by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lbsgd.models.normalization import moments
from lbsgd.models.normalized_product import normalized_product

EPSILON = 1e-5
INPUTS, OUTPUTS = 6, 24
# What takes the place of a usual case: how far means lie, in deviations, and of some scales.
CASES = {
    "usual": {},
    "means of 10,000 deviations": {"mean": 1e4},
    "a scale of 0": {"scale": 0.0},
    "a negative scale": {"scale": -2.0},
    "one example": {"n": 1},
    "more examples than give the shift": {"n": 37},
}


def plainly(x, kernel, scale, offset):
    """By the product itself, as `BatchNorm` does."""
    y = jnp.matmul(x, kernel.astype(x.dtype), precision="highest")
    found = moments(y, (), scale.dtype)
    factor = jnp.expand_dims(scale * lax.rsqrt(found.variance + EPSILON), (0, 1, 2))
    constant = jnp.expand_dims(offset, (0, 1, 2))
    rest = jnp.expand_dims(found.rest, (0, 1, 2))
    z = (found.centred - rest) * factor + constant
    return z.astype(x.dtype), found.mean, found.variance


def joined(x, kernel, scale, offset):
    return normalized_product(x, kernel, scale, offset, EPSILON, "highest")


def drawn(n=20, mean=3.0, scale=None, dtype=jnp.float64, wide=jnp.float64):
    """Input and parameters, and the cotangent of the output."""
    random = np.random.default_rng(0)
    means = mean * np.linspace(-1, 1, INPUTS)
    x = random.normal(size=(n, 5, 4, INPUTS)) * np.linspace(0.5, 2, INPUTS) + means
    kernel = random.normal(size=(INPUTS, OUTPUTS))
    scales, offset = random.normal(size=(2, OUTPUTS))
    if scale is not None:
        scales[::5] = scale
    parameters = [jnp.asarray(a, wide) for a in (kernel, scales, offset)]
    cotangent = random.normal(size=(n, 5, 4, OUTPUTS))
    return (jnp.asarray(x, dtype), *parameters), jnp.asarray(cotangent, dtype)


def run(f, args, cotangent, wrap=lambda f: f):
    """Outputs, moments, and the gradients of all arguments."""

    def loss(*args):
        z, mean, variance = f(*args)
        return jnp.sum(z * cotangent), (z, mean, variance)

    gradients, outputs = jax.jit(wrap(jax.grad(loss, (0, 1, 2, 3), has_aux=True)))(*args)
    names = ("z", "mean", "variance", "of x", "of kernel", "of scale", "of offset")
    return dict(zip(names, (*outputs, *gradients)))


def assert_close(found, expected, rtol):
    """Relative to the largest of each array."""
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        value = np.asarray(value, np.float64)
        atol = rtol * np.abs(value).max()
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), value, rtol=0, atol=atol, err_msg=name
        )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_product_and_its_batch_norm(x64, case):
    """In float64: means of 10,000 deviations cost both ways 4 of 16 digits, and the sums one."""
    args, cotangent = drawn(**case)
    assert_close(run(joined, args, cotangent), run(plainly, args, cotangent), 1e-10)


def test_lanes_are_batches_of_their_own(x64):
    """Under vmap with shared parameters: as lane by lane."""
    (x, *parameters), cotangent = drawn(n=16)
    lanes, cotangents = x.reshape(4, 4, *x.shape[1:]), cotangent.reshape(4, 4, *cotangent.shape[1:])

    def loss(x, cotangent, *parameters):
        z, mean, variance = joined(x, *parameters)
        return jnp.sum(z * cotangent), (mean, variance)

    gradient = jax.grad(loss, (0, 2, 3, 4), has_aux=True)
    found = jax.jit(jax.vmap(gradient, in_axes=(0, 0, None, None, None)))(
        lanes, cotangents, *parameters
    )
    for lane in range(4):
        of_lane = run(plainly, (lanes[lane], *parameters), cotangents[lane])
        of_lane.pop("z")
        (of_x, *of_parameters), (mean, variance) = jax.tree.map(lambda a, i=lane: a[i], found)
        values = (mean, variance, of_x, *of_parameters)
        assert_close(dict(zip(of_lane, values)), of_lane, 1e-12)


def test_it_may_be_computed_again_on_the_way_back(x64):
    args, cotangent = drawn()
    assert_close(run(jax.checkpoint(joined), args, cotangent), run(joined, args, cotangent), 1e-12)


def test_bfloat16_is_normalised_in_float32(x64):
    """Moments are in float32, and the output is rounded once, by up to 2^-8 of its size."""
    args, cotangent = drawn(n=64, dtype=jnp.bfloat16, wide=jnp.float32)
    exact = [a.astype(jnp.float64) for a in args]
    # The kernel that is multiplied by is rounded, both ways.
    exact[1] = args[1].astype(jnp.bfloat16).astype(jnp.float64)
    truth = run(plainly, tuple(exact), cotangent.astype(jnp.float64))
    found = run(joined, args, cotangent)
    assert found["z"].dtype == found["of x"].dtype == jnp.bfloat16
    assert found["variance"].dtype == found["of kernel"].dtype == jnp.float32
    # Of a gradient the factors of two products are rounded, and their sum.
    roundings = {"z": 1, "variance": 1, "of scale": 1, "of kernel": 2, "of x": 3}
    for name, value in truth.items():
        tolerance = (roundings.get(name, 0) * 2**-8 + 1e-5) * float(np.abs(value).max())
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), value, rtol=0, atol=tolerance, err_msg=name
        )


def test_no_gradient_passes_by_the_moments(x64):
    args, _ = drawn()
    gradients = jax.grad(lambda *args: sum(map(jnp.sum, joined(*args)[1:])), (0, 1, 2, 3))(*args)
    assert all(not jnp.any(g) for g in gradients)


def test_neither_the_product_nor_anything_as_large_is_kept(x64):
    """Keeps for the backward pass the input alone of all that has positions."""
    args, _ = drawn()
    _, back = jax.vjp(lambda *args: joined(*args)[0], *args)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(back))
    assert sizes[-1] == args[0].size
    assert sizes[-2] <= INPUTS * OUTPUTS
