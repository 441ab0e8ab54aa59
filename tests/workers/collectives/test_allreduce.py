"""Every all-reduce is the mean to summation order, and the same bits on every device."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hanging import HANG_SECONDS
from jax.sharding import Mesh, PartitionSpec
from ranks import compiled, reduced

from lbsgd.system.errors import ConfigError
from lbsgd.workers.collectives import cost
from lbsgd.workers.collectives.allreduce import allreduce
from lbsgd.workers.collectives.names import ALGORITHMS, DTYPES
from lbsgd.workers.collectives.topology import block_sizes

# The largest relative error of a rounding.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# Scalars, empty arrays, sizes that nothing divides, of both types: several buckets of 500 bytes.
# In jaxlib 0.11.2 XLA's compiler for CPUs crashes on arrays without elements beside a collective,
# in whatever program of several devices.
EMPTY = [] if jax.__version_info__ >= (0, 11) else [(0,), (2, 0, 3)]
SHAPES = [(), (101,), (5, 7), (1,), *EMPTY]
TYPES = ["float32"] * len(SHAPES) + ["float64"] * 3


def cases(quick):
    """(ranks, algorithm) where it exists; those not `quick`, by ranks or as such, are long."""
    return [
        pytest.param(p, name, marks=[] if {p, (p, name)} & quick else pytest.mark.long)
        for p in range(2, 9)
        for name in ALGORITHMS
        if name != "halving_doubling" or len(block_sizes(p)) == 1
    ]


@functools.cache
def program(ranks, algorithm, dtype=None):
    """Compiled once for all that is asked of it."""
    tree = random_tree(ranks)
    return compiled(ranks, tree, algorithm=algorithm, dtype=dtype, bucket_bytes=500)


def random_tree(ranks):
    rng = np.random.default_rng(ranks)
    shapes = SHAPES + SHAPES[:3]
    return [rng.normal(size=(ranks, *shape)).astype(t) for shape, t in zip(shapes, TYPES)]


def assert_same_bits(leaf):
    leaf = np.asarray(leaf)
    assert {other.tobytes() for other in leaf} == {leaf[0].tobytes()}


def assert_mean(found, tree, *, roundings, unit, summing=0.0, smallest=0.0):
    """All devices have the mean: each term has passed so many roundings, and p in summing."""
    assert len(found) == len(tree)
    for leaf, given in zip(found, tree):
        assert (leaf.shape, leaf.dtype) == (given.shape, given.dtype)
        assert_same_bits(leaf)
        ranks, given = len(given), given.astype(np.longdouble)
        relative = np.expm1(roundings * np.log1p(unit) + ranks * np.log1p(summing))
        bound = relative * np.abs(given).mean(0) + roundings * smallest
        assert np.all(np.abs(np.asarray(leaf)[0] - given.mean(0)) <= bound)


@pytest.mark.parametrize(("ranks", "algorithm"), cases(quick={6, 8, (5, "binary_blocks")}))
def test_it_is_the_mean(x64, ranks, algorithm):
    tree = random_tree(ranks)
    found = program(ranks, algorithm)(tree)
    half = len(SHAPES)
    # p - 1 sums and a division.
    assert_mean(found[:half], tree[:half], roundings=ranks, unit=UNIT["float32"])
    assert_mean(found[half:], tree[half:], roundings=ranks, unit=UNIT["float64"])


@pytest.mark.parametrize(
    ("ranks", "algorithm", "dtype"),
    [
        pytest.param(
            *c.values,
            dtype,
            marks=[] if (c.values[0], dtype) in ((7, "bfloat16"), (8, "float16")) else c.marks,
        )
        for c in cases(quick=set())
        for dtype in DTYPES
    ],
)
class TestIn16Bits:
    def test_it_errs_by_its_roundings(self, x64, ranks, algorithm, dtype):
        tree = random_tree(ranks)
        found = program(ranks, algorithm, dtype)(tree)
        grid = (ranks, 1) if algorithm == "hierarchical" else None  # this process is one host
        assert_mean(
            found,
            tree,
            roundings=cost.roundings(algorithm, ranks, grid),
            unit=UNIT[dtype],
            summing=UNIT["float32"],
            smallest=smallest_step(tree) if dtype == "float16" else 0.0,
        )

    def test_each_device_has_what_was_sent(self, x64, ranks, algorithm, dtype):
        """Compares with numbers that the type holds, also on the device that computed them.

        In bfloat16 that is the mean. In float16 it is the sum, times a power of two, which each
        device divides for itself in float32: its significand has 11 bits.
        """
        for leaf in program(ranks, algorithm, dtype)(random_tree(ranks)):
            leaf = np.asarray(leaf)
            if dtype == "bfloat16":
                held = leaf.astype(jnp.dtype(dtype)).astype(leaf.dtype)
                np.testing.assert_array_equal(held, leaf)
            else:
                significand = np.frexp(leaf.astype(np.float64) * ranks)[0] * 2.0**11
                # Of a quotient, rounded to 24 bits, with 11 before the point.
                np.testing.assert_allclose(significand, np.rint(significand), rtol=0, atol=2.0**-12)

    def test_each_gradient_counts_once(self, x64, ranks, algorithm, dtype):
        """Sums of different powers of two are exact in 8 bits; a term too many or few is seen."""
        tree = [powers_of_two(leaf) for leaf in random_tree(ranks)]
        for leaf, given in zip(program(ranks, algorithm, dtype)(tree), tree):
            assert_same_bits(leaf)
            mean = given.astype(np.float32).sum(0) / np.float32(ranks)
            if dtype == "bfloat16":
                mean = mean.astype(jnp.dtype(dtype)).astype(leaf.dtype)
                np.testing.assert_array_equal(leaf[0], mean)
            else:  # the sum is exact, and divided in float32, by XLA to an ulp or two
                np.testing.assert_allclose(leaf[0], mean, rtol=2.0**-22, atol=0)

    def test_nan_and_infinity_reach_all_and_their_own_element_alone(
        self, x64, ranks, algorithm, dtype
    ):
        tree = random_tree(ranks)
        hurt = [leaf.copy() for leaf in tree]
        hurt[1][ranks - 1, 17], hurt[2][0, 4, 6] = np.nan, np.inf
        for good, bad in zip(*(program(ranks, algorithm, dtype)(t) for t in (tree, hurt))):
            different = np.asarray(good != bad)
            np.testing.assert_array_equal(~np.isfinite(bad), different)
            assert (different == different[:1]).all()
            assert different[0].sum() == {(101,): 1, (5, 7): 1}.get(good.shape[1:], 0) * (
                good.dtype == np.float32
            )


def smallest_step(tree):
    """Half of float16's smallest number, 2^-24, where the sum of the largest is 30,000 or more."""
    largest = max(np.abs(leaf).max(tuple(range(1, leaf.ndim))).sum() for leaf in tree if leaf.size)
    return 2.0**-25 * largest / 29_000


def powers_of_two(leaf):
    """2^(rank + something of the element), so that no two terms of a mean are alike."""
    ranks, rest = len(leaf), leaf[0].size
    exponents = np.arange(ranks)[:, None] + np.arange(rest)[None] % 5 - 2
    return np.exp2(exponents).reshape(leaf.shape).astype(leaf.dtype)


@pytest.mark.parametrize("algorithm", ["psum", "hierarchical"])
def test_the_backends_own_is_summed_in_float32(algorithm):
    """256 + 7 halves is 256 if summed in bfloat16, one after another, and 259.5 in float32."""
    x = np.full((8, 16), 0.5, np.float32)
    x[3] = 256
    found = reduced(8, x, algorithm=algorithm, dtype="bfloat16", grid=(8, 1))
    assert (found == 32.5).all()  # 259.5 / 8 to 8 bits


def test_partial_sums_that_stay_are_not_rounded():
    """Rank 0 keeps 257 for its first quarter, which 16 bits cannot hold, and adds 0 + 1 to it."""
    x = np.zeros((4, 8), np.float32)
    x[:, 0] = [256, 1, 0, 1]
    found = reduced(4, x, algorithm="halving_doubling", dtype="bfloat16")
    assert (found[:, 0] == 258 / 4).all()
    # The owner's own 257.2 / 3 is 85.5 to 8 bits; that of 258, its rounding, 86.
    x = np.zeros((3, 6), np.float32)
    x[0, 0] = 257.2
    found = reduced(3, x, algorithm="ring", dtype="bfloat16")
    assert (found[:, 0] == 85.5).all()


@pytest.mark.parametrize("algorithm", ["psum", "ring", "binary_blocks", "torus_2d", "hierarchical"])
def test_leaves_of_16_bits_keep_their_type(algorithm):
    x = random_tree(3)[2].astype(jnp.bfloat16)
    (found,) = reduced(3, [x], algorithm=algorithm)
    assert found.dtype == jnp.bfloat16
    assert_same_bits(found)
    exact = x.astype(np.float64)
    bound = ((1 + UNIT["bfloat16"]) ** 4 - 1) * np.abs(exact).mean(0)
    assert (np.abs(found[0].astype(np.float64) - exact.mean(0)) <= bound).all()


@pytest.mark.parametrize(
    ("algorithm", "grid"),
    [
        ("torus_2d", (2, 3)),
        ("torus_2d", (1, 6)),
        ("hierarchical", (2, 3)),
        ("hierarchical", (3, 2)),
        pytest.param("hierarchical", (1, 6), marks=pytest.mark.long),
        pytest.param("torus_2d", (6, 1), marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("dtype", [None, pytest.param("bfloat16", marks=pytest.mark.long)])
def test_grids_of_six(algorithm, grid, dtype):
    tree = [leaf for leaf in random_tree(6) if leaf.dtype == np.float32]
    found = reduced(6, tree, algorithm=algorithm, grid=grid, dtype=dtype, bucket_bytes=500)
    roundings = cost.roundings(algorithm, 6, grid) if dtype else 6
    unit = UNIT[dtype or "float32"]
    assert_mean(found, tree, roundings=roundings, unit=unit, summing=UNIT["float32"])


def test_one_device_has_the_mean_already():
    tree = random_tree(1)[: len(SHAPES)]
    for algorithm in ALGORITHMS:
        found = reduced(1, tree, algorithm=algorithm, dtype="bfloat16")
        for leaf, given in zip(found, tree):
            np.testing.assert_array_equal(leaf, given)


def test_psum_is_one_mean_of_the_tree():
    text = compiled(4, [leaf[:4] for leaf in random_tree(4)[:6]]).as_text()
    assert text.count(" all-reduce(") == 1
    assert "collective-permute" not in text


def test_an_axis_can_be_one_of_several():
    """Two independent means, over the columns of a mesh."""
    mesh = Mesh(np.array(jax.devices()[:6]).reshape(2, 3), ("row", "column"))
    f = jax.shard_map(
        functools.partial(allreduce, axis="column", algorithm="ring"),
        mesh=mesh,
        in_specs=PartitionSpec("row", "column"),
        out_specs=PartitionSpec("row", "column"),
        check_vma=False,
    )
    found = jax.jit(f)(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(found, [[1, 1, 1], [4, 4, 4]])


@pytest.mark.parametrize(
    ("ranks", "options", "told"),
    [
        (4, {"algorithm": "tree"}, "known: psum, ring, halving_doubling"),
        (6, {"algorithm": "halving_doubling"}, "a power of two of devices, not 6; take binary"),
        (8, {"algorithm": "torus_2d", "grid": (3, 2)}, r"number of devices, 8; take e.g. \(4, 2\)"),
        (8, {"algorithm": "torus_2d", "grid": (-4, -2)}, "product"),
        (8, {"algorithm": "hierarchical", "grid": (8, 1, 1)}, "not two numbers"),
        (4, {"algorithm": "ring", "dtype": "int8"}, "known: bfloat16, float16"),
    ],
)
def test_what_cannot_be_says_what_to_take(ranks, options, told):
    with pytest.raises(ConfigError, match=told):
        compiled(ranks, np.ones((ranks, 3), np.float32), **options)


def test_integers_are_refused():
    with pytest.raises(TypeError, match="integers"):
        compiled(2, np.ones((2, 3), np.int32), algorithm="ring")


MORE = """
import jax
jax.config.update("jax_num_cpu_devices", 16)
jax.config.update("jax_enable_x64", True)
import numpy as np
import test_allreduce as t
from lbsgd.workers.collectives import cost
from ranks import bytes_sent, compiled, messages, rounds
from lbsgd.workers.collectives.topology import block_sizes
for ranks in (9, 12, 15, 16):
    blocks, first = [], 0
    for size in block_sizes(ranks):
        blocks.append(range(first, first + size))
        first += size
    for algorithm in t.ALGORITHMS:
        if algorithm == "halving_doubling" and ranks != 16:
            continue
        tree = t.random_tree(ranks)
        for dtype in (None, "bfloat16"):
            found = t.program(ranks, algorithm, dtype)(tree)
            unit = t.UNIT[dtype or "float32"]
            grid = (ranks, 1) if algorithm == "hierarchical" else None
            roundings = cost.roundings(algorithm, ranks, grid) if dtype else ranks
            t.assert_mean(found, tree, roundings=roundings, unit=unit, summing=2.0**-24)
        if algorithm in ("psum", "hierarchical"):
            continue
        x = np.ones((ranks, 720), np.float32)
        found = messages(compiled(ranks, x, algorithm=algorithm).as_text())
        one = [range(ranks)]
        assert rounds(found, blocks if algorithm == "binary_blocks" else one) == cost.steps(
            algorithm, ranks)
        assert max(bytes_sent(found, ranks)) == 4 * 720 * cost.load(algorithm, ranks)
"""


@pytest.mark.long
def test_more_devices():
    folder = pathlib.Path(__file__).parent
    path = os.pathsep.join(map(str, (folder, folder.parent, folder.parent.parent)))
    done = subprocess.run(
        [sys.executable, "-c", MORE],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
