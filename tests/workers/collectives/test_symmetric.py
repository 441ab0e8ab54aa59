"""Symmetric matrices as triangles."""

import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.workers.collectives.symmetric import on_diagonal, pack, packed_shape, unpack


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 16])
def test_a_packed_matrix_is_half_as_large_and_comes_back_to_the_bit(d):
    x = np.random.default_rng(d).normal(size=(d, d)).astype(np.float32)
    x += x.mT
    packed = np.asarray(pack(jnp.asarray(x)))
    assert packed.shape == packed_shape(d)
    assert packed.size == sum(range(1, d + d % 2 + 1))
    np.testing.assert_array_equal(unpack(jnp.asarray([packed, 2 * packed]), d), [x, 2 * x])
    # Each number once, so that a norm is that of the diagonal and twice the rest.
    diagonal = np.asarray(on_diagonal(jnp.arange(packed.shape[0], dtype=jnp.int32), d))
    np.testing.assert_array_equal(
        np.sort(packed[diagonal]), np.sort(np.r_[np.diag(x), [0] * (d % 2)])
    )
    weights = np.where(diagonal, 1, 2)
    np.testing.assert_allclose(np.sum(weights * packed**2), np.sum(x**2), rtol=1e-6)
