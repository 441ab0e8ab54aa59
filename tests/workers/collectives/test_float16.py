"""Gradients of any size cross in float16: neither vanish nor overflow."""

import functools

import jax
import numpy as np
import pytest
from ranks import compiled, reduced

from lbsgd.workers.collectives import cost
from lbsgd.workers.collectives.names import ALGORITHMS

SCALES = [1e-33, 1e-30, 1e-20, 1e-8, 1e-7, 1e-5, 1e-2, 1.0, 1e3, 1e6, 1e30]
N = 1000
LARGEST = float(np.finfo(np.float32).max)
LEAST = float(np.finfo(np.float32).tiny)  # less is 0, on many devices


def quick(algorithm, ranks):
    """A few of the pairs are tried in short tests."""
    short = (algorithm, ranks) in {("psum", 2), ("ring", 8), ("binary_blocks", 7)}
    return pytest.param(algorithm, ranks, marks=[] if short else pytest.mark.long)


@functools.cache
def program(ranks, algorithm, dtype=np.float32, count=N, bucket_bytes=1 << 20):
    """The compiled mean of an array `[ranks, count]` of the type, sent in float16."""
    shape = jax.ShapeDtypeStruct((ranks, count), dtype)
    return compiled(ranks, shape, algorithm=algorithm, dtype="float16", bucket_bytes=bucket_bytes)


def mean(x, algorithm="ring", **options):
    """What all devices have, after the same bits were found on each."""
    found = np.asarray(program(len(x), algorithm, x.dtype.type, x.shape[1], **options)(x))
    assert {row.tobytes() for row in found} == {found[0].tobytes()}
    return found[0]


def random(ranks, scale=1.0, count=N):
    return (np.random.default_rng(ranks).normal(size=(ranks, count)) * scale).astype(np.float32)


def relative_error(found, x):
    """Of the whole, against the mean in long double."""
    exact = x.astype(np.longdouble).mean(0)
    return np.sqrt(np.sum((found - exact) ** 2) / np.sum(exact**2))


@pytest.mark.parametrize(
    ("algorithm", "ranks"),
    [
        quick(algorithm, ranks)
        for algorithm in ALGORITHMS
        for ranks in (2, 3, 4, 7, 8)
        if algorithm != "halving_doubling" or ranks in (2, 4, 8)
    ],
)
class TestAnySize:
    def test_the_error_is_the_same(self, algorithm, ranks):
        """Its bound is that of random roundings to 11 bits, each of what has been summed so far."""
        for scale in SCALES:
            x = random(ranks, scale)
            assert relative_error(mean(x, algorithm), x) < 1e-3, scale

    def test_no_more_vanishes_than_float32_loses(self, algorithm, ranks):
        """Near its smallest numbers, where the scale itself is at its bounds."""
        for scale in (1e-38, 1e-37, 1e-36):
            x = random(ranks, scale)
            exact = np.where(np.abs(x) < LEAST, 0, x).astype(np.longdouble).mean(0)
            bound = LEAST + (cost.roundings(algorithm, ranks) + 1) * 2.0**-11 * np.abs(x).mean(0)
            assert (np.abs(mean(x, algorithm) - exact) <= bound).all()

    def test_sums_of_the_largest_there_are_do_not_overflow(self, algorithm, ranks):
        """All of one sign and size, whose sum is more than float32 holds."""
        x = np.full((ranks, N), 0.99 * LARGEST, np.float32)
        x[:, ::3] *= -1
        roundings = cost.roundings(algorithm, ranks)
        bound = (1 + 2.0**-11) ** (roundings + 1) - 1
        np.testing.assert_allclose(mean(x, algorithm), x[0], rtol=bound)

    def test_zeros_stay(self, algorithm, ranks):
        np.testing.assert_array_equal(mean(np.zeros((ranks, N), np.float32), algorithm), 0)

    def test_what_is_not_finite_stays_and_leaves_the_rest(self, algorithm, ranks):
        x = random(ranks, 1e-8)
        hurt = x.copy()
        hurt[0, 3], hurt[ranks - 1, 50], hurt[0, 70] = np.inf, -np.inf, np.nan
        hurt[:2, 90] = [np.inf, -np.inf]
        expected = mean(x, algorithm).copy()
        expected[[3, 50, 70, 90]] = [np.inf, -np.inf, np.nan, np.nan]
        np.testing.assert_array_equal(mean(hurt, algorithm), expected)


@pytest.mark.parametrize("what", [np.inf, -np.inf, np.nan])
def test_a_bucket_of_nothing_finite(what):
    x = np.full((4, 8), what, np.float32)
    np.testing.assert_array_equal(mean(x), x[0])


@pytest.mark.parametrize("largest", [1e-33, 1e-8, 1.0, 1e30])
def test_one_device_alone_may_have_a_gradient(largest):
    x = np.zeros((8, N), np.float32)
    x[5] = random(1, largest)[0]
    assert relative_error(mean(x), x) < 1e-3


def test_devices_whose_sizes_differ(x64):
    """Each term errs by its own roundings, and by the smallest step beside the largest of all."""
    x = random(8) * np.logspace(-8, 2, 8, dtype=np.float32)[:, None]
    step = 2.0**-25 * np.abs(x).max(1).sum() / 29_000
    roundings = cost.roundings("ring", 8)
    bound = ((1 + 2.0**-11) ** (roundings + 1) - 1) * np.abs(x).mean(0) + roundings * step
    assert (np.abs(mean(x) - x.astype(np.longdouble).mean(0)) <= bound).all()


def test_each_bucket_has_its_own_scale():
    """Of two, 1e12 apart: in one they would not fit in float16's range."""
    x = np.concatenate([random(4, 1e-9), random(4, 1e3)], 1)
    found = mean(x, bucket_bytes=4 * N)
    for part in (slice(0, N), slice(N, 2 * N)):
        assert relative_error(found[part], x[:, part]) < 1e-3


def test_the_scale_is_the_largest_power_of_two_that_fits():
    """8 x 7500 fills 60,000 and s = 1; anything more, and s is one half."""
    small = 2.0**-24  # float16's smallest number
    for largest, step in ((7400.0, small), (7600.0, 2 * small)):
        x = np.zeros((8, 16), np.float32)
        x[:, 0] = largest
        x[:, 1] = 5 * step  # can be sent; what is half a step less is rounded to even
        x[:, 2] = 4.5 * step
        np.testing.assert_array_equal(
            mean(x, "psum")[:3], np.float32([largest, 5, 4]) * [1, step, step]
        )


def test_gradients_of_float16_themselves():
    """Their sum overflows float16, and their mean does not; small ones keep their bits."""
    x = np.full((4, 6), 6e4, np.float16)
    (found,) = reduced(4, [x], algorithm="ring")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x)
    x = np.full((4, 6), 2.0**-24, np.float16) * np.arange(6, dtype=np.float16)
    np.testing.assert_array_equal(reduced(4, [x], algorithm="ring")[0], x)


def test_bfloat16_needs_none():
    """It has the range of float32, and sends no scalar."""
    send = compiled(4, random(4), algorithm="ring", dtype="bfloat16")
    for scale in (1e-33, 1e-8, 1e5, 1e30):
        found = np.asarray(send(random(4, scale)))[0]
        assert 1e-4 < relative_error(found, random(4, scale)) < 8e-3
    assert " all-reduce(" not in send.as_text()
