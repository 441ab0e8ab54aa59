"""Inverses of positive definite matrices, by one device and by several, against numpy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lbsgd.optim.inversion import BLOCK, Rows, inverse, inverse_rows
from lbsgd.workers.collectives import owned
from lbsgd.workers.collectives.ownership import Ownership


def definite(d):
    rows = np.random.default_rng(d).normal(size=(2 * d, d))
    return rows.T @ rows / (2 * d) + 0.01 * np.eye(d)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("d", [1, 17, BLOCK, BLOCK + 1, 600])
def test_it_is_the_inverse(x64, d):
    matrix = definite(d)
    assert relative(jax.jit(inverse)(jnp.asarray(matrix)), np.linalg.inv(matrix)) < 1e-12


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_single_precision_is_as_good_as_the_matrix_allows(factor):
    """To the rounding of float32, 6e-8, times the condition number; of any magnitude."""
    matrix = factor * definite(300)
    found = jax.jit(inverse)(jnp.asarray(matrix, jnp.float32))
    assert relative(found, np.linalg.inv(matrix)) < 6e-8 * np.linalg.cond(matrix)


@pytest.mark.parametrize(
    ("groups", "members", "d"),
    [
        (2, 3, BLOCK + 8),
        *(pytest.param(*c, 520, marks=pytest.mark.long) for c in ((2, 3), (1, 8), (2, 2))),
    ],
)
def test_groups_invert_together_what_is_theirs(x64, groups, members, d):
    """A matrix for each group; rows that nobody has, and members whose rows are of two blocks."""
    devices = groups * members
    owner = Ownership(groups, d, 0, devices, groups)
    matrices = np.stack([definite(d) * (1 + g) for g in range(groups)])
    mesh = Mesh(np.array(jax.devices()[:devices]), ("devices",))
    by_device = PartitionSpec("devices")

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=by_device, out_specs=by_device, check_vma=False
    )
    def rows(matrix):
        member = jax.lax.axis_index("devices") % members
        total = functools.partial(owned.psum_in_group, owner=owner, axes="devices")
        return inverse_rows(matrix[0], Rows(member * owner.width, owner.width, total))

    found = jax.jit(rows)(jnp.asarray(np.repeat(matrices, members, axis=0)))
    for matrix, of_group in zip(matrices, np.split(np.asarray(found), groups)):
        assert relative(of_group[:d], np.linalg.inv(matrix)) < 1e-12
        assert not of_group[d:].any()


@pytest.mark.parametrize("d", [3, BLOCK + 100])
def test_what_is_not_definite_gives_no_number(d):
    matrix = np.eye(d, dtype=np.float32)
    matrix[-1, -1] = -1
    assert jnp.isnan(jax.jit(inverse)(matrix)).all()
