"""The fast forms of convolution and pooling against the plain ones of XLA and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lbsgd.models.convolution import convolve, max_pool

EPS = np.finfo(np.float64).eps


def plain_convolution(x, kernel, stride):
    margin = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((margin, margin),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def plain_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [1, 3, 5, 7])
@pytest.mark.parametrize("sides", [(8, 8), (9, 7), (8, 5), (1, 2)], ids=str)
def test_a_convolution_is_the_plain_one(x64, sides, width, stride, channels):
    """Values, and the gradient of images and kernel; sums of up to 392 products of about 1."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, *sides, channels))
    kernel = random.normal(size=(width, width, channels, 4))
    cotangent = random.normal(size=plain_convolution(x, kernel, stride).shape)

    def of(f):
        def loss(x, kernel):
            y = f(x, kernel, stride)
            return jnp.sum(y * cotangent), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)

    found, expected = (of(f) for f in (lambda *a: convolve(*a, "highest"), plain_convolution))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=400 * 16 * EPS)


def images(kind: str, sides: tuple[int, int], dtype) -> np.ndarray:
    """Different numbers; or, after relu, many zeros and equal ones; or all alike."""
    random = np.random.default_rng(1)
    shape = (2, *sides, 3)
    if kind == "different":
        return random.permutation(int(np.prod(shape))).reshape(shape).astype(dtype) - 50
    if kind == "equal":
        return np.full(shape, -3.0, dtype)
    return np.maximum(random.integers(-3, 4, shape), 0).astype(dtype)


@pytest.mark.parametrize("kind", ["different", "ties", "equal"])
@pytest.mark.parametrize("sides", [(8, 8), (9, 7), (6, 5), (1, 2)], ids=str)
def test_max_pooling_is_xla_s_and_its_gradient_goes_to_the_first_of_equals(x64, sides, kind):
    """Exactly: cotangents are whole numbers, and a pixel is in four windows at most."""
    x = jnp.asarray(images(kind, sides, np.float64))
    expected, back = jax.vjp(plain_pool, x)
    found, our_back = jax.vjp(jax.jit(max_pool), x)
    cotangent = jnp.asarray(np.random.default_rng(2).integers(-9, 9, expected.shape), x.dtype)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(our_back(cotangent)[0], back(cotangent)[0])


@pytest.mark.parametrize("kind", ["different", "ties"])
def test_max_pooling_and_its_gradient_are_pytorch_s(kind):
    torch = pytest.importorskip("torch")
    x = images(kind, (9, 8), np.float32)
    theirs = torch.tensor(np.moveaxis(x, -1, 1), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    cotangent = np.random.default_rng(2).integers(-9, 9, expected.shape).astype(np.float32)
    expected.backward(torch.tensor(cotangent))
    found, back = jax.vjp(max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(np.moveaxis(found, -1, 1), expected.detach().numpy())
    gradient = back(jnp.asarray(np.moveaxis(cotangent, 1, -1)))[0]
    np.testing.assert_array_equal(np.moveaxis(gradient, -1, 1), theirs.grad.numpy())


def test_max_pooling_keeps_what_is_not_finite():
    x = np.zeros((1, 8, 8, 1), np.float32)
    x[0, 1, 1], x[0, 4, 4], x[0, 7, 7] = np.nan, np.inf, -np.inf
    found = np.asarray(max_pool(jnp.asarray(x)))[0, :, :, 0]
    assert np.isnan(found[:2, :2]).all()
    assert found[2, 2] == np.inf
    assert found[3, 3] == 0


def test_max_pooling_has_the_derivatives_of_its_first_maxima_to_any_order(x64):
    """A Hessian-vector product, as the diagnostics take it, under a map over lanes."""
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 1, 7, 6, 2)))
    v = jnp.asarray(np.random.default_rng(4).normal(size=x.shape))

    def product(pool):
        def loss(x):
            return jnp.sum(jnp.sin(jax.vmap(pool)(x)))

        return jax.jit(lambda x, v: jax.jvp(jax.grad(loss), (x,), (v,))[1])(x, v)

    np.testing.assert_allclose(product(max_pool), product(plain_pool), rtol=0, atol=8 * EPS)
