"""Arranges p ranks for an all-reduce: in blocks, grids and hosts."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

from lbsgd.system.errors import ConfigError

# Lines of ranks of one length; every rank is in one line, at a position of it.
Lines = tuple[tuple[int, ...], ...]


def block_sizes(ranks: int) -> tuple[int, ...]:
    """Splits `ranks` into powers of two, largest first: 44 -> (32, 8, 4)."""
    return tuple(1 << bit for bit in reversed(range(ranks.bit_length())) if ranks >> bit & 1)


def square_grid(ranks: int) -> tuple[int, int]:
    """Finds (X, Y) with XY = `ranks`, X >= Y as near to each other as can be: 8 -> (4, 2)."""
    # Rings take 2 (X - 1) + 2 (Y - 1) rounds, the fewest where X and Y are nearest.
    y = max(y for y in range(1, math.isqrt(ranks) + 1) if ranks % y == 0)
    return ranks // y, y


def host_grid(devices: Iterable[Any]) -> tuple[int, int]:
    """Counts (devices of one process, processes) of devices in the order of their ranks.

    Raises:
      ConfigError: processes differ in their number of devices, or these are not neighbours.
    """
    # Runs, not counts: a row of the grid is of ranks that follow each other.
    groups = itertools.groupby(int(device.process_index) for device in devices)
    runs = [(process, len(list(run))) for process, run in groups]
    remedy = "set allreduce.algorithm=binary_blocks"
    if len({process for process, _ in runs}) < len(runs):
        raise ConfigError(
            "the devices of a process do not follow each other, as those of a row of the "
            f"hierarchical all-reduce must; {remedy}"
        )
    sizes = [size for _, size in runs]
    if len(set(sizes)) != 1:
        raise ConfigError(
            f"the processes hold {', '.join(map(str, sizes))} devices, and the hierarchical "
            f"all-reduce wants as many of each; {remedy}"
        )
    return sizes[0], len(sizes)


def rows(grid: tuple[int, int]) -> Lines:
    """Lists the Y rows of X ranks: rank = row * X + column."""
    x, y = grid
    return tuple(tuple(range(row * x, (row + 1) * x)) for row in range(y))


def columns(grid: tuple[int, int]) -> Lines:
    """Lists the X columns of Y ranks."""
    return tuple(zip(*rows(grid)))
