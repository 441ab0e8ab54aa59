"""Buckets, blocks and grids, against what they are for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbsgd.system.errors import ConfigError
from lbsgd.workers.collectives.buckets import fill
from lbsgd.workers.collectives.topology import block_sizes, columns, host_grid, rows, square_grid


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 60))
def test_buckets_hold_each_element_once_and_in_order(sizes, capacity):
    buckets = fill(sizes, capacity)
    found = [(p.leaf, i) for bucket in buckets for p in bucket for i in range(p.start, p.stop)]
    assert found == [(leaf, i) for leaf, size in enumerate(sizes) for i in range(size)]
    held = [sum(p.stop - p.start for p in bucket) for bucket in buckets]
    assert held[:-1] == [capacity] * (len(held) - 1)
    assert all(0 < n <= capacity for n in held[-1:])


@given(st.integers(1, 10_000))
def test_blocks_are_the_binary_digits(ranks):
    sizes = block_sizes(ranks)
    assert sum(sizes) == ranks
    assert list(sizes) == sorted(set(sizes), reverse=True)
    assert all(math.log2(size).is_integer() for size in sizes)


@given(st.integers(1, 3000))
def test_grids_are_as_square_as_can_be(ranks):
    pairs = [(ranks // y, y) for y in range(1, ranks + 1) if ranks % y == 0]
    x, y = square_grid(ranks)
    assert (x, y) == min((p for p in pairs if p[0] >= p[1]), key=lambda p: p[0] - p[1])


@given(st.integers(1, 20), st.integers(1, 20))
def test_rows_and_columns_cross_once(x, y):
    across, down = rows((x, y)), columns((x, y))
    assert [rank for row in across for rank in row] == list(range(x * y))  # neighbours in a host
    assert (len(across), len(down)) == (y, x)
    for row in across:
        for column in down:
            assert len(set(row) & set(column)) == 1


class Device:
    """What host_grid asks of one."""

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("processes", "grid"), [([0, 0, 0, 1, 1, 1], (3, 2)), ([0, 1, 2], (1, 3)), ([5], (1, 1))]
)
def test_hosts_are_the_processes(processes, grid):
    assert host_grid(map(Device, processes)) == grid


@pytest.mark.parametrize("processes", [[0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]])
def test_the_devices_of_a_host_must_be_neighbours(processes):
    with pytest.raises(ConfigError, match=r"do not follow each other.*; set .*binary_blocks"):
        host_grid(map(Device, processes))


@pytest.mark.parametrize("processes", [[0, 0, 1], [0, 1, 1, 2]])
def test_hosts_must_be_alike(processes):
    with pytest.raises(ConfigError, match=r"as many of each; set .*binary_blocks"):
        host_grid(map(Device, processes))
