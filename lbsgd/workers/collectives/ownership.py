"""Shares layers out over devices, which own the work on them: inverses, and their updates.

Layers of one shape, factors [long, long] and [short, short], are a stack of n. The D devices are c
groups of m = D / c members; a group owns q = ceil(n / c) of the layers, and in each of them every
member w = ceil(long / m) columns of the longer factor's inverse, and as many rows of the update.
So no device waits for one that owns a larger layer: all do the same.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lbsgd.workers.collectives.symmetric import packed_shape

# The largest factor that one device inverts. To invert together costs 2 d^2 numbers to be sent,
# which takes longer than it saves where d is some thousands or less.
ALONE = 2304


@dataclasses.dataclass(frozen=True)
class Ownership:
    """Says which layers of a stack, and which part of them, each of D devices owns.

    Device d is member d % m of group d // m; layer i belongs to group i // q. What is missing to
    c q layers, or to m w columns, is made up for by zeros.

    Attributes:
      layers: n.
      long, short: dimensions of the factors; short is 0 where there is one factor alone.
      devices: D.
      groups: c, which divides D.
    """

    layers: int
    long: int
    short: int
    devices: int
    groups: int

    @property
    def members(self) -> int:
        """Devices of a group, m."""
        return self.devices // self.groups

    @property
    def per_group(self) -> int:
        """Layers that a group owns, q."""
        return -(-self.layers // self.groups)

    @property
    def width(self) -> int:
        """Rows of the longer factor's inverse that a member owns, w."""
        return self.rows_of(self.long)

    @property
    def inverts_together(self) -> bool:
        """Tells whether the members of a group make the longer factor's inverse together."""
        return self.members > 1 and self.long > ALONE

    @property
    def columns(self) -> int:
        """Columns of a layer's gradient, as a matrix of `long` rows."""
        return self.short or 1

    @property
    def device_groups(self) -> list[list[int]]:
        """Lists the devices of each group, as JAX's collectives take them."""
        return np.arange(self.devices).reshape(self.groups, self.members).tolist()

    def rows_of(self, rows: int) -> int:
        """Counts the rows that a member has of a layer's matrix of so many."""
        return -(-rows // self.members)

    def inversion_flops(self) -> int:
        """Counts the operations of a device to invert the factors of what it owns, once."""
        own = self.width if self.inverts_together else self.long
        return self.per_group * 2 * (self.long**2 * own + self.short**3)

    def update_flops(self) -> int:
        """Counts the operations of a device to precondition what it owns."""
        of_long, of_short = self.long * self.columns, self.short**2
        return self.per_group * 2 * self.width * (of_long + of_short)


def share_out(layers: int, factors: Sequence[int], devices: int) -> Ownership:
    """Shares a stack out, so that a device has the least to do where all is refreshed.

    Args:
      layers: n.
      factors: dimensions of one or both.
      devices: D.
    """
    long, short = max(factors), min(factors) if len(factors) > 1 else 0
    # More groups than layers only leave devices without work.
    most = next(c for c in _divisors(devices) if c >= min(layers, devices))
    choices = [Ownership(layers, long, short, devices, c) for c in _divisors(devices) if c <= most]
    # Of equal ones that with fewer members, which have less to tell each other.
    return min(
        choices,
        key=lambda o: (o.inversion_flops() + o.update_flops(), -o.groups),
    )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def balance(owners: Sequence[Ownership]) -> float:
    """Computes how evenly inversions are shared out: what one device alone would do, over D.

    As a share of what each of D devices does; less than 1 by what several of them do alike.
    """
    alone = sum(o.layers * Ownership(1, o.long, o.short, 1, 1).inversion_flops() for o in owners)
    return alone / (owners[0].devices * sum(o.inversion_flops() for o in owners))


class Sent(NamedTuple):
    """Counts the numbers that a device sends in an update, by rings.

    Attributes:
      statistics: of both factors of all layers, refreshed.
      inversions: of the factors that are inverted together, refreshed.
      gradients: to the owners, and among these.
      updates: from the owners to all.
    """

    statistics: int
    inversions: int
    gradients: int
    updates: int


def sent(owners: Sequence[Ownership]) -> Sent:
    """Counts what a device sends for all stacks."""
    statistics = inversions = gradients = updates = 0
    others = owners[0].devices - 1
    for o in owners:
        for d in (o.long, o.short):
            rows, columns = packed_shape(d)
            size = o.per_group * o.rows_of(rows) * columns
            statistics += (others + o.members - 1) * size
        if o.inverts_together:
            # Each row of the matrix once, to all members.
            inversions += 2 * (o.members - 1) * -(-(o.long**2) // o.members) * o.per_group
        size = o.per_group * o.width * o.columns
        gradients += (others + o.members - 1) * size
        updates += others * size
    return Sent(statistics, inversions, gradients, updates)
