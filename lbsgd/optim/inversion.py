"""Inverts positive definite matrices, alone or with the devices of a group.

By block Gauss-Jordan elimination: for each block K of indices, with the pivot P = M[K, K],

    M[K, K] <- P^-1,    M[i, K] <- M[i, K] P^-1,    M[K, j] <- -P^-1 M[K, j]
    M[i, j] <- M[i, j] - M[i, K] P^-1 M[K, j]        of all others,

after which M is its inverse. A pivot is a Schur complement of what was definite, and needs no
search. Products of large matrices are all of its work, in a loop: XLA's own Cholesky and triangular
solutions for a TPU are a program that grows with the matrix (of 2,048 rows minutes to compile).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# The largest matrix that is inverted at once; of larger ones, about the size of a block.
BLOCK = 128


class Rows(NamedTuple):
    """Says which rows of an inverse a device makes.

    Attributes:
      first: of them.
      length: how many; past the last row of the inverse they are zeros.
      total: adds up over the devices that make the other rows.
    """

    first: Int[Array, ""]
    length: int
    total: Callable[[jax.Array], jax.Array]


def inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Computes the inverse of a positive definite matrix; NaN where it is not definite."""
    d = matrix.shape[0]
    if d <= BLOCK:
        return _by_cholesky(matrix)
    return _eliminated(matrix, Rows(jnp.int32(0), d, lambda panel: panel))


def inverse_rows(matrix: Float[Array, "d d"], rows: Rows) -> Float[Array, "length d"]:
    """Computes rows of `inverse(matrix)`, while others make the others.

    Args:
      matrix: the same for all, which are all to call this.
    """
    return _eliminated(_taken(matrix, rows.first, rows.length), rows)


def _taken(x: Float[Array, "rows d"], first: Int[Array, ""], count: int) -> Float[Array, "count d"]:
    """Takes rows from one on; past the last, and before the first, they are zeros."""
    index = first + jnp.arange(count, dtype=jnp.int32)
    # A negative index would be one from the end.
    index = jnp.where(index < 0, x.shape[0], index)
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _eliminated(own: Float[Array, "count d"], rows: Rows) -> Float[Array, "count d"]:
    """Makes rows of a matrix those of its inverse."""
    d = own.shape[1]
    blocks = -(-d // BLOCK)
    # Of equal size, and that a multiple of 8: of 257 indices not 512 are computed.
    b = -(-d // (8 * blocks)) * 8
    numbers = jnp.arange(b, dtype=jnp.int32)
    index = rows.first + jnp.arange(rows.length, dtype=jnp.int32)

    def step(k: Int[Array, ""], own: Float[Array, "count e"]) -> Float[Array, "count e"]:
        start = k * b
        panel = rows.total(_taken(own, start - rows.first, b))
        pivot = lax.dynamic_slice_in_dim(panel, start, b, axis=1)
        # What is missing to whole blocks is nobody's row, and as if the identity were there.
        pivot += jnp.diag((start + numbers >= d).astype(pivot.dtype))
        inside = ((index >= start) & (index < start + b))[:, None]
        chosen = (index[:, None] == start + numbers[None]).astype(own.dtype)
        left = jnp.where(inside, chosen, lax.dynamic_slice_in_dim(own, start, b, axis=1))
        left = product(left, _by_cholesky(pivot))
        own = jnp.where(inside, 0, own) - product(left, panel)
        return lax.dynamic_update_slice_in_dim(own, left, start, axis=1)

    padded = jnp.pad(own, ((0, 0), (0, blocks * b - d)))
    return lax.fori_loop(0, blocks, step, padded)[:, :d]


def _by_cholesky(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    # One matrix at a time, here and by who calls. jaxlib's LAPACK shares a batch out over the
    # threads that run it, and waits there: two batches at a time on two cores wait for each other
    # (0.10.2, on a CPU).
    lower, solve = jnp.linalg.cholesky(matrix), lax.linalg.triangular_solve
    half = solve(lower, jnp.eye(matrix.shape[0], dtype=matrix.dtype), left_side=True, lower=True)
    return solve(lower, half, left_side=True, lower=True, transpose_a=True)


def product(left: Float[Array, "i j"], right: Float[Array, "j k"]) -> Float[Array, "i k"]:
    """Multiplies two matrices, at the precision of their type."""
    return jnp.einsum("ij,jk->ik", left, right, precision="highest")
