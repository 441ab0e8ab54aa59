"""Symmetric matrices as triangles."""

import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.workers.collectives.symmetric import on_diagonal, pack, packed_size, unpack


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 16])
def test_a_packed_matrix_is_half_as_large_and_comes_back_to_the_bit(d):
    x = np.random.default_rng(d).normal(size=(3, d, d)).astype(np.float32)
    x += x.mT
    packed = np.asarray(pack(jnp.asarray(x)))
    assert packed.shape == (3, packed_size(d))
    assert packed_size(d) == sum(range(1, d + d % 2 + 1))
    np.testing.assert_array_equal(unpack(jnp.asarray(packed), d), x)
    # Each number once, so that a norm is that of the diagonal and twice the rest.
    diagonal = np.asarray(on_diagonal(jnp.arange(packed_size(d), dtype=jnp.int32), d))
    np.testing.assert_array_equal(
        np.sort(packed[0][diagonal]), np.sort(np.r_[np.diag(x[0]), [0] * (d % 2)])
    )
    weights = np.where(diagonal, 1, 2)
    np.testing.assert_allclose(np.sum(weights * packed**2, axis=1), np.sum(x**2, (1, 2)), rtol=1e-6)
