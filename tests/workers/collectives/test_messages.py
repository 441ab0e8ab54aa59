"""The compiled programs send what cost.py and the papers' tables say, counted."""

import re
from fractions import Fraction

import numpy as np
import pytest
from ranks import bytes_sent, compiled, messages, rounds, shape_bytes

from lbsgd.workers.collectives import cost
from lbsgd.workers.collectives.topology import block_sizes

N = 840  # what 1 to 8 divide
BYTES = {None: 4 * N, "bfloat16": 2 * N}

# Steps, and bytes sent in units of n.
RING = {2: (2, 1), 3: (4, 4 / 3), 4: (6, 1.5), 5: (8, 1.6), 6: (10, 5 / 3), 7: (12, 12 / 7)}
RING[8] = (14, 1.75)
TORUS = {(2, 2): (4, 1.5), (4, 2): (8, 1.75), (2, 4): (8, 1.75), (3, 2): (6, 5 / 3)}
# Rounds, and bytes sent in units of n by a rank of each block.
BLOCKS = {
    2: (2, {2: 1}),
    3: (4, {2: 1.5, 1: 1}),
    4: (4, {4: 1.5}),
    5: (6, {4: 1.75, 1: 1}),
    6: (6, {4: 1.75, 2: 1.5}),
    7: (8, {4: 1.75, 2: 2, 1: 1}),
    8: (6, {8: 1.75}),
}


def sent(ranks, dtype=None, **options):
    """Messages of one bucket of n, and what each rank sends in units of n."""
    x = np.ones((ranks, N), np.float32)
    found = messages(compiled(ranks, x, dtype=dtype, **options).as_text())
    return found, [Fraction(b, BYTES[dtype]) for b in bytes_sent(found, ranks)]


def assert_one_after_another(found):
    """Each message waits for the one before, so none was merged or split."""
    assert sorted(message.depth for message in found) == list(range(len(found)))


@pytest.mark.parametrize("ranks", RING)
@pytest.mark.parametrize("dtype", [None, pytest.param("bfloat16", marks=pytest.mark.long)])
def test_ring(ranks, dtype):
    steps, load = RING[ranks]
    found, loads = sent(ranks, dtype, algorithm="ring")
    assert_one_after_another(found)
    assert len(found) == steps == cost.steps("ring", ranks)
    assert set(loads) == {cost.load("ring", ranks)}
    assert float(loads[0]) == pytest.approx(load)
    for message in found:
        assert set(message.pairs) == {(i, (i + 1) % ranks) for i in range(ranks)}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_halving_and_doubling(ranks, dtype):
    found, loads = sent(ranks, dtype, algorithm="halving_doubling")
    levels = ranks.bit_length() - 1
    assert_one_after_another(found)
    assert len(found) == 2 * levels == cost.steps("halving_doubling", ranks)
    assert set(loads) == {Fraction(2 * (ranks - 1), ranks)}
    for i, message in enumerate(sorted(found, key=lambda m: m.depth)[:levels]):
        assert set(message.pairs) == {(rank, rank ^ 2**i) for rank in range(ranks)}
        assert message.bytes * 2 ** (i + 1) == BYTES[dtype]


@pytest.mark.parametrize("grid", TORUS)
def test_torus(grid):
    ranks, (steps, load) = grid[0] * grid[1], TORUS[grid]
    found, loads = sent(ranks, algorithm="torus_2d", grid=grid)
    assert_one_after_another(found)
    assert len(found) == steps == cost.steps("torus_2d", ranks, grid)
    assert set(loads) == {cost.load("torus_2d", ranks, grid)}
    assert float(loads[0]) == pytest.approx(load)
    x, y = grid
    sizes = 2 * (x - 1) * [4 * N // x] + 2 * (y - 1) * [4 * N // (x * y)]
    assert sorted(message.bytes for message in found) == sorted(sizes)


@pytest.mark.parametrize("ranks", BLOCKS)
@pytest.mark.parametrize("dtype", [None, pytest.param("bfloat16", marks=pytest.mark.long)])
def test_binary_blocks(ranks, dtype):
    steps, loads_of_blocks = BLOCKS[ranks]
    found, loads = sent(ranks, dtype, algorithm="binary_blocks")
    blocks, first = [], 0
    for size in block_sizes(ranks):
        blocks.append(range(first, first + size))
        first += size
    assert rounds(found, blocks) == steps == cost.steps("binary_blocks", ranks)
    for block in blocks:
        assert {loads[rank] for rank in block} == {loads_of_blocks[len(block)]}
    assert cost.block_loads(ranks) == loads_of_blocks
    # As long as the docstring says that a chain of messages can be.
    longest = 1 + max(message.depth for message in found)
    assert longest == 2 * (max(map(len, blocks)).bit_length() - 1)


@pytest.mark.parametrize("grid", [(2, 4), (4, 2), (2, 3)])
def test_hierarchical_between_hosts(grid):
    """Between hosts binary blocks of n / g; within one the backend's own."""
    g, q = grid
    found, loads = sent(g * q, algorithm="hierarchical", grid=grid)
    for message in found:
        assert all(a != b and a % g == b % g for a, b in message.pairs)
    assert len(found) == {4: 4, 2: 2, 3: 6}[q]  # of 3, two to each of two ranks, and back
    assert max(loads) == cost.load("binary_blocks", q) / g
    within = Fraction(2 * (g - 1), g)
    assert cost.load("hierarchical", g * q, grid) == within + max(loads)


@pytest.mark.parametrize("algorithm", ["psum", "hierarchical"])
def test_16_bits_cross_where_the_backend_exchanges(algorithm):
    text = compiled(
        4, np.ones((4, N), np.float32), algorithm=algorithm, dtype="float16", grid=(2, 2)
    ).as_text()
    for operation in ("all-to-all", "all-gather", "collective-permute"):
        lines = [line for line in text.splitlines() if f" {operation}(" in line]
        assert all("= u16[" in line or "= (u16[" in line for line in lines), operation
        assert bool(lines) == (operation != "collective-permute" or algorithm != "psum")
    assert reduced_bytes(text) == [4]  # the sum of the largest gradients, in float32
    assert " reduce-scatter(" not in text


def reduced_bytes(text):
    """Of each of the backend's own all-reduces, which XLA may have made one."""
    return [shape_bytes(shape) for shape in re.findall(r"= (.*?) all-reduce\(", text)]


@pytest.mark.parametrize(
    "algorithm", ["ring", pytest.param("binary_blocks", marks=pytest.mark.long)]
)
def test_float16_sends_a_scalar_for_each_bucket_besides(algorithm):
    """And else as many messages of as many bytes as bfloat16."""
    x = np.ones((4, N), np.float32)
    options = {"algorithm": algorithm, "bucket_bytes": 4 * 280}
    half, brain = (
        compiled(4, x, dtype=dtype, **options).as_text() for dtype in ("float16", "bfloat16")
    )
    assert sum(reduced_bytes(half)) == 3 * 4
    assert reduced_bytes(brain) == []
    assert len(messages(half)) == len(messages(brain)) == 3 * cost.steps(algorithm, 4)
    assert bytes_sent(messages(half), 4) == bytes_sent(messages(brain), 4)


def test_buckets_are_exchanged_apart():
    """Three of 280 elements, of leaves that they cut; none waits for another."""
    x = [np.ones((4, 300), np.float32), np.ones((4, 540), np.float32)]
    found = messages(compiled(4, x, algorithm="ring", bucket_bytes=4 * 280).as_text())
    assert len(found) == 3 * 6
    assert sorted(message.depth for message in found) == sorted(3 * list(range(6)))
    assert set(bytes_sent(found, 4)) == {1.5 * 4 * N}
