"""Costs against the papers' tables, and against each other."""

import math
import pathlib
import runpy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbsgd.workers.collectives import cost
from lbsgd.workers.collectives.cost import Link

# p: steps of the ring, rounds of halving and doubling or blocks, 2(p - 1)/p, bytes by block.
TABLE = {
    2: (2, 2, 1.0000, {}),
    3: (4, 4, 1.3333, {2: 1.5, 1: 1.0}),
    4: (6, 4, 1.5000, {}),
    5: (8, 6, 1.6000, {4: 1.75, 1: 1.0}),
    6: (10, 6, 1.6667, {4: 1.75, 2: 1.5}),
    7: (12, 8, 1.7143, {4: 1.75, 2: 2.0, 1: 1.0}),
    8: (14, 6, 1.7500, {}),
    12: (22, 8, 1.8333, {8: 1.875, 4: 1.75}),
    16: (30, 8, 1.8750, {}),
    32: (62, 10, 1.9375, {}),
    44: (86, 14, 1.9545, {32: 1.96875, 8: 2.0, 4: 1.75}),
    48: (94, 12, 1.9583, {32: 1.96875, 16: 1.9375}),
}


@pytest.mark.parametrize("ranks", TABLE)
def test_steps_and_bytes(ranks):
    ring, rounds, share, blocks = TABLE[ranks]
    assert cost.steps("ring", ranks) == ring
    assert cost.steps("binary_blocks", ranks) == rounds
    assert float(cost.load("ring", ranks)) == pytest.approx(share, abs=5e-5)
    blocks = blocks or {ranks: 2 * (ranks - 1) / ranks}
    assert cost.block_loads(ranks) == blocks
    assert cost.load("binary_blocks", ranks) == max(blocks.values())
    if len(blocks) == 1:
        assert cost.steps("halving_doubling", ranks) == rounds
        assert cost.load("halving_doubling", ranks) == blocks[ranks]


@pytest.mark.parametrize(
    ("grid", "steps", "load"),
    [
        ((2, 2), 4, 1.5),
        ((4, 2), 8, 1.75),
        ((4, 4), 12, 1.875),
        ((8, 4), 20, 1.9375),
        ((3, 4), 10, 1.8333),
    ],
)
def test_torus(grid, steps, load):
    ranks = math.prod(grid)
    assert cost.steps("torus_2d", ranks, grid) == steps
    assert float(cost.load("torus_2d", ranks, grid)) == pytest.approx(load, abs=5e-5)
    if grid[0] >= grid[1]:
        assert cost.steps("torus_2d", ranks) == steps  # the most square is the default


@pytest.mark.parametrize(
    ("ranks", "alpha", "ring", "halving"),
    [
        (2, 5e-6, 16.010, 16.010),
        (8, 5e-6, 28.070, 28.030),
        (16, 5e-6, 30.150, 30.040),
        (32, 5e-6, 31.310, 31.050),
        (2, 50e-6, 16.100, 16.100),
        (8, 50e-6, 28.700, 28.300),
        (16, 50e-6, 31.500, 30.400),
        (32, 50e-6, 34.100, 31.500),
    ],
)
def test_worked_times_of_100_megabytes_at_50_gigabits(ranks, alpha, ring, halving):
    link = Link(alpha, 1 / 6.25e9)
    assert 1e3 * cost.seconds("ring", ranks, 1e8, link) == pytest.approx(ring, abs=5e-4)
    for algorithm in ("halving_doubling", "binary_blocks"):
        found = 1e3 * cost.seconds(algorithm, ranks, 1e8, link)
        assert found == pytest.approx(halving, abs=5e-4)


def test_tiny_buffers_are_6_2_times_faster_by_halving_on_32():
    link = Link(50e-6, 1 / 6.25e9)
    ratio = cost.seconds("ring", 32, 1, link) / cost.seconds("halving_doubling", 32, 1, link)
    assert ratio == pytest.approx(6.2, rel=1e-4)


def test_grids_with_links_of_two_kinds():
    """The formulas of the torus and of reduce-scatter, all-reduce, all-gather, written out."""
    x, y, n = 4, 8, 1e8
    a, b, g = within = Link(3e-6, 2e-11, 1e-11)
    c, d, h = between = Link(5e-5, 1.6e-10, 1e-11)
    sums = (x - 1) * n / x * g + (y - 1) * n / (x * y) * h
    torus = 2 * (x - 1) * (a + n / x * b) + 2 * (y - 1) * (c + n / (x * y) * d) + sums
    assert cost.seconds("torus_2d", 32, n, within, (x, y), between) == pytest.approx(torus)
    halving = 2 * 3 * c + 2 * n / x * d * (y - 1) / y
    hosts = 2 * (x - 1) * (a + n / x * b) + halving + sums
    assert cost.seconds("hierarchical", 32, n, within, (x, y), between) == pytest.approx(hosts)


@pytest.mark.parametrize(
    ("ranks", "link", "time"),
    [
        # Blocks of 2 and 1. Half is exchanged; all comes from the block of 1, half to each; all
        # goes back to it; half is exchanged.
        (3, Link(0, 1), 0.5 + 1 + 1 + 0.5),
        (3, Link(1, 0), 4),
        (3, Link(0, 0, 1), 0.5 + 0.5),
        # Blocks of 4 and 2: 3/4, a half from each of the smaller block, a half back, 3/4.
        (6, Link(0, 1), 0.75 + 0.5 + 0.5 + 0.75),
        (6, Link(1, 0), 6),
        # Of 7 the blocks of 2 and 1 are done when that of 4 is: 2, 1 to it, 1 back, 2.
        (7, Link(1, 0), 6),
    ],
)
def test_blocks_wait_for_each_other(ranks, link, time):
    assert cost.seconds("binary_blocks", ranks, 1, link) == pytest.approx(time)


RANKS = st.integers(2, 300)
LINKS = st.builds(Link, *[st.floats(1e-9, 1.0)] * 3)


@given(RANKS, LINKS, st.floats(1, 1e9))
def test_nothing_is_faster_than_the_lower_bounds(ranks, link, size):
    for algorithm in ("ring", "binary_blocks", "torus_2d", "hierarchical"):
        least = cost.lower_bounds(ranks, size, link)
        time = cost.seconds(algorithm, ranks, size, link)
        assert time >= (1 - 1e-9) * max(least)
        assert time <= (1 + 1e-9) * cost.seconds(algorithm, ranks, 2 * size, link)
        assert cost.load(algorithm, ranks) >= 2 * (ranks - 1) / ranks - 1e-9


@given(RANKS, LINKS, st.floats(1, 1e9))
def test_special_cases_are_one_another(ranks, link, size):
    def both(algorithm, grid):
        return (
            cost.steps(algorithm, ranks, grid),
            cost.load(algorithm, ranks, grid),
            cost.seconds(algorithm, ranks, size, link, grid),
        )

    assert both("torus_2d", (ranks, 1)) == both("ring", None) == both("torus_2d", (1, ranks))
    assert both("hierarchical", (1, ranks)) == both("binary_blocks", None)
    assert both("hierarchical", (ranks, 1)) == both("ring", None)
    power = 1 << ranks.bit_length()
    assert cost.load("binary_blocks", power) == cost.load("ring", power)


def test_lower_bounds():
    found = cost.lower_bounds(5, 100.0, Link(2.0, 0.5, 0.25))
    assert found == pytest.approx((6.0, 80.0, 20.0))


@pytest.mark.parametrize(
    ("operation", "factor"),
    [
        ("allreduce", 14 / 8),
        ("reduce_scatter", 7 / 8),
        ("all_gather", 7 / 8),
        ("all_to_all", 7 / 8),
        ("broadcast", 1),
        ("reduce", 1),
        ("allreduce_in_network", 7 / 9),
    ],
)
def test_bus_bandwidth_is_nccls(operation, factor):
    assert cost.bus_bandwidth(operation, 8, 1e6, 0.5) == pytest.approx(2e6 * factor)


def test_the_backends_own_has_no_cost():
    with pytest.raises(KeyError):
        cost.steps("psum", 8)


def test_the_page_has_these_numbers(monkeypatch):
    root = pathlib.Path(__file__).parents[3]
    monkeypatch.syspath_prepend(root / "benchmarks")
    table = runpy.run_path(str(root / "benchmarks" / "allreduce.py"))["costs"]()
    assert table in (root / "docs" / "collectives.md").read_text()
