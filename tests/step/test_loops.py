"""Loops over steps: the same numbers as without one, in the form that is fast on a CPU."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lbsgd.step.cpu import cpu_forms
from lbsgd.step.loops import scan

IN_ORDER = r"dim_labels=b01f_01io->b01f"
ORDERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
# Of jnp.float64: a few thousand products are summed, in another order.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def convolve(x, w, dims=2, order=None, stride=1, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        w,
        (stride,) * dims,
        ((1, 1),) * dims,
        rhs_dilation=(dilation,) * dims,
        dimension_numbers=order or ORDERS[dims],
        feature_group_count=groups,
    )


def operands(dims=2, order=None, groups=1, lanes=()):
    """Images of 7 (and 6, 5) pixels of 4 channels, filters of 3 to 6 channels."""
    sizes = {"N": 2, "C": 4, "I": 4 // groups, "O": 6}
    lhs, rhs, _ = order or ORDERS[dims]
    space = [c for c in lhs if c not in "NC"]
    random = np.random.default_rng(0)
    image = [sizes.get(c, 7 - space.index(c) if c in space else 0) for c in lhs]
    filters = [sizes.get(c, 3) for c in rhs]
    return random.normal(size=(*lanes, *image)), random.normal(size=filters)


CASES = {
    "plain": {},
    "of one dimension": {"dims": 1},
    "of three": {"dims": 3},
    "channels first": {"order": ("NCHW", "OIHW", "NCHW")},
    "any order": {"order": ("HNCW", "OWIH", "CWHN")},
    "strided": {"stride": 2},
    "dilated": {"dilation": 2},
    "in groups": {"groups": 2},
}


def loss_of(**how):
    return lambda x, w: jnp.sum(jnp.sin(convolve(x, w, **how)))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_those_of_the_convolution(case):
    how = CASES[case]
    x, w = operands(
        *(how.get(key) or d for key, d in (("dims", 2), ("order", None))), how.get("groups", 1)
    )
    gradients = jax.value_and_grad(loss_of(**how), (0, 1))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **CLOSE),
        jax.jit(cpu_forms(gradients))(x, w),
        jax.jit(gradients)(x, w),
    )


def in_scan(x, w):
    return jnp.sum(lax.scan(lambda c, row: (c, jnp.sin(convolve(row[None], w))), 0.0, x)[1])


def in_condition(x, w):
    return lax.cond(x[0, 0, 0, 0] > 0, loss_of(), lambda x, w: 2 * loss_of()(x, w), x, w)


@jax.custom_vjp
def with_gradient_of_its_own(x, w):
    return loss_of()(x, w)


with_gradient_of_its_own.defvjp(
    lambda x, w: (loss_of()(x, w), (x, w)),
    lambda kept, g: jax.tree.map(lambda d: 3 * g * d, jax.grad(loss_of(), (0, 1))(*kept)),
)

NESTED = {
    "jit": jax.jit(loss_of()),
    "scan": in_scan,
    "remat": jax.checkpoint(loss_of()),
    "cond": in_condition,
    "custom_vjp": with_gradient_of_its_own,
    "vmap": lambda x, w: jnp.sum(jax.vmap(loss_of(), (0, None))(jnp.stack([x, 2 * x]), w)),
}


# Of programs that are called, of loops and of conditions one each.
SHORT = ("remat", "scan", "cond")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x in SHORT else pytest.mark.long) for x in NESTED]
)
def test_it_reaches_functions_within_functions(name):
    x, w = operands()
    gradients = jax.value_and_grad(NESTED[name], (0, 1))
    canonical = jax.jit(cpu_forms(gradients))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **CLOSE),
        canonical(x, w),
        jax.jit(gradients)(x, w),
    )
    forms = re.findall(r"dim_numbers = \[(.*)\], window", canonical.lower(x, w).as_text())
    assert forms
    assert set(forms) == {"b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f"}


def looped(platform, steps=3):
    x, w = operands(lanes=(steps,))
    gradient = jax.grad(loss_of(stride=2), 1)

    def sum_of_gradients(w, x):
        return scan(lambda total, row: (total + gradient(row, w), row[0]), 0 * w, x, platform)

    expected = sum(gradient(row, w) for row in x)
    return jax.jit(sum_of_gradients).lower(w, x).compile(), (w, x), expected


def test_on_a_cpu_every_convolution_in_the_loop_has_its_dimensions_in_order():
    compiled, args, expected = looped("cpu")
    total, first_rows = compiled(*args)
    np.testing.assert_allclose(total, expected, **CLOSE)
    np.testing.assert_array_equal(first_rows, args[1][:, 0])
    assert " while(" in compiled.as_text()
    convolutions = re.findall("convolution.*dim_labels.*", compiled.as_text())
    assert convolutions
    assert all(re.search(IN_ORDER, line) for line in convolutions)


def test_elsewhere_the_convolutions_are_left_to_the_compiler():
    """The oracle of the test before: without help XLA leaves the gradient in the loop as it is."""
    compiled, args, expected = looped("gpu")
    np.testing.assert_allclose(compiled(*args)[0], expected, **CLOSE)
    convolutions = re.findall("convolution.*dim_labels.*", compiled.as_text())
    assert any(not re.search(IN_ORDER, line) for line in convolutions)


def test_a_single_step_has_no_loop():
    compiled, args, expected = looped("cpu", steps=1)
    total, first_rows = compiled(*args)
    np.testing.assert_allclose(total, expected, **CLOSE)
    assert first_rows.shape == (1, *args[1].shape[2:])
    assert " while(" not in compiled.as_text()
