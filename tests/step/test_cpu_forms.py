"""Convolutions and pooling in the forms that CPUs run fast: the numbers of the plain ones."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from lbsgd.step.cpu import cpu_forms
from lbsgd.step.evaluation import eval_step
from lbsgd.step.reduction import sum_over_steps
from lbsgd.workers.placement import place

# Of jnp.float64: some thousand products of numbers near 1 are summed, in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape)


def convolution(x, w, stride=1, padding=None, dilation=1):
    margin = w.shape[0] // 2 if padding is None else padding
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        ((margin, margin), (margin, margin)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# Images (of 9 and 8 channels, so none is too narrow) and kernel, with how it is moved.
CONVOLUTIONS = {
    "3x3": ((4, 7, 6, 9), 3, {}),
    "3x3 with a stride": ((4, 8, 8, 9), 3, {"stride": 2}),
    "3x3 with a stride that leaves some over": ((4, 7, 6, 9), 3, {"stride": 2}),
    "3x3 with a stride of 3": ((4, 11, 9, 9), 3, {"stride": 3}),
    "1x1": ((4, 5, 6, 9), 1, {}),
    "1x1 with a stride": ((4, 8, 7, 9), 1, {"stride": 2}),
    "1x1, padded": ((4, 5, 6, 9), 1, {"padding": 2, "stride": 2}),
    "7x7 with a stride": ((4, 16, 14, 9), 7, {"stride": 2}),
    "2x2": ((4, 8, 8, 9), 2, {"stride": 2, "padding": 0}),
    "4x4 with a stride of 3": ((4, 10, 9, 9), 4, {"stride": 3}),
    "3x3 dilated": ((4, 9, 8, 9), 3, {"dilation": 2}),
    "3x3 of prime count": ((5, 7, 6, 9), 3, {}),
    "3x3 of one image": ((1, 7, 6, 9), 3, {}),
    "3x3 of images smaller than the kernel": ((2, 2, 3, 9), 3, {}),
    "1x1 of images smaller than the kernel": ((2, 1, 2, 99), 1, {}),
    "3x3 of narrow images": ((4, 7, 6, 3), 3, {}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_are_those_of_the_plain_one(case):
    shape, kernel, how = CONVOLUTIONS[case]
    x, w = drawn(*shape), drawn(kernel, kernel, shape[-1], 8)
    both = jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(convolution(x, w, **how))), (0, 1))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **CLOSE),
        jax.jit(cpu_forms(both))(x, w),
        jax.jit(both)(x, w),
    )


def test_large_images_are_taken_in_blocks(monkeypatch):
    monkeypatch.setattr("lbsgd.step.cpu_convolutions._BLOCK", 2 * 8 * 8 * 9 * 8)  # two images
    x, w = drawn(6, 8, 8, 9), drawn(3, 3, 9, 8)
    gradient = jax.grad(lambda w: jnp.sum(jnp.sin(convolution(x, w))))
    fast = jax.jit(cpu_forms(gradient))
    np.testing.assert_allclose(fast(w), jax.jit(gradient)(w), **CLOSE)
    assert "2x10x8x9xf64" in fast.lower(w).as_text()  # two images, with rows above and below


def brute_force(x, w, dy, stride, margin):
    """Sums the products of a convolution's gradients, one after the other."""
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n, p, q in itertools.product(*map(range, dy.shape[:3])):
        for i, j in itertools.product(range(w.shape[0]), range(w.shape[1])):
            row, column = p * stride + i - margin, q * stride + j - margin
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                dw[i, j] += np.outer(x[n, row, column], dy[n, p, q])
                dx[n, row, column] += w[i, j] @ dy[n, p, q]
    return dx, dw


@pytest.mark.parametrize("stride", [1, 2])
def test_its_gradients_are_the_sums_of_products(stride):
    x, w = drawn(2, 7, 6, 9), drawn(3, 3, 9, 8)
    dy = drawn(*convolution(x, w, stride).shape)
    apart = cpu_forms(lambda x, w: jax.vjp(lambda *a: convolution(*a, stride), x, w)[1](dy))
    for found, expected in zip(apart(x, w), brute_force(x, w, dy, stride, 1)):
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_kernel_gradients_of_16_bits_are_summed_in_32():
    # 4,096 ones: in bfloat16 a sum of ones stops at 256.
    x, w = jnp.ones((16, 16, 16, 8), jnp.bfloat16), jnp.zeros((1, 1, 8, 8), jnp.bfloat16)
    gradient = cpu_forms(jax.grad(lambda w: jnp.sum(convolution(x, w).astype(jnp.float32))))
    assert np.all(np.asarray(gradient(w), np.float64) == 4096)


POOLINGS = {
    "of ResNet's stem": ((2, 8, 8, 3), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "with an odd side": ((2, 9, 7, 3), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "without overlap": ((2, 8, 6, 3), (2, 2), (2, 2), "VALID"),
    "that leaves some out": ((2, 9, 8, 3), (2, 3), (3, 4), "VALID"),
    "of every pixel": ((2, 5, 6, 3), (3, 3), (1, 1), "SAME"),
}


@pytest.mark.parametrize("case", POOLINGS)
@pytest.mark.parametrize("levels", [0, 3], ids=["all different", "many equal"])
def test_the_gradient_of_max_pooling_is_that_of_select_and_scatter(case, levels):
    shape, window, strides, padding = POOLINGS[case]
    x = drawn(*shape)
    if levels:  # ties, of which the first is taken
        x = np.round(x * levels / 3)
    weights = jnp.arange(7.0)

    def loss(x):
        y = nn.max_pool(x, window, strides, padding)
        return jnp.sum(jnp.sin(y) * weights[jnp.arange(y.size) % 7].reshape(y.shape))

    both = jax.value_and_grad(loss)
    fast = jax.jit(cpu_forms(both))
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), fast(x), both(x))
    assert "select_and_scatter" not in fast.lower(x).as_text()


def test_pooling_of_lanes_is_transformed_too():
    x = drawn(3, 2, 8, 8, 3)

    def loss(x):
        pooled = jax.vmap(lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))))(x)
        return jnp.sum(jnp.sin(pooled))

    fast = jax.jit(cpu_forms(jax.grad(loss)))
    np.testing.assert_allclose(fast(x), jax.grad(loss)(x), **CLOSE)
    assert "select_and_scatter" not in fast.lower(x).as_text()


def test_kernels_of_one_pixel_and_their_gradients_are_products():
    x, w = drawn(4, 8, 8, 9), drawn(1, 1, 9, 8)
    both = jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(convolution(x, w, 2))), (0, 1))
    text = jax.jit(cpu_forms(both)).lower(x, w).as_text()
    assert len(re.findall(r"stablehlo\.dot_general", text)) == 3
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize("steps", [1, 2])
def test_accumulation_takes_the_forms_on_cpus_alone(steps):
    x, w = drawn(steps, 4, 8, 8, 9), drawn(1, 1, 9, 8)
    gradient = jax.grad(lambda w, x: jnp.sum(jnp.sin(convolution(x, w))))

    def summed(platform):
        def sums(w, x):
            return sum_over_steps(functools.partial(gradient, w), x, platform)

        return jax.jit(sums).lower(w, x).as_text()

    assert "stablehlo.convolution" not in summed("cpu")
    assert "stablehlo.convolution" in summed("tpu")


def test_evaluation_takes_the_forms():
    w = drawn(1, 1, 3, 4)
    placement = place(8, 4, devices=1)
    step = functools.partial(
        eval_step,
        network=lambda params, stats, images: convolution(images, params),
        preprocess=lambda images: images.astype(jnp.float64),
        evaluate=lambda outputs, rows: {"sum": jnp.sum(outputs, (1, 2, 3))},
        placement=placement,
    )
    images = np.arange(2 * 4 * 5 * 5 * 3, dtype=np.uint8).reshape(1, 2, 4, 5, 5, 3)
    rows = {"image": images, "mask": np.ones((1, 2, 4), bool)}
    text = jax.jit(step).lower(w, {}, rows).as_text()
    assert "stablehlo.convolution" not in text
    found = jax.jit(step)(w, {}, rows)["sum"]
    np.testing.assert_allclose(found, np.sum(images.reshape(-1, 3).astype(float) @ w[0, 0]))
