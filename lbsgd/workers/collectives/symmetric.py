"""Packs symmetric matrices, half of which need not be sent.

Of [d, d], d even and k = d / 2, the lower triangle of the first k columns and the upper triangle of
the last k rows and columns fill a rectangle [d + 1, k] together (the "rectangular full packed
format" of LAPACK; Gustavson et al. 2010). Slices and selections make it, for gathering single
numbers is slow on an accelerator.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def packed_shape(d: int) -> tuple[int, int]:
    """Gives rows and columns of a packed matrix [d, d]."""
    even = d + d % 2
    return even + 1, even // 2


def pack(x: Float[Array, "d d"]) -> Float[Array, "rows k"]:
    """Packs a symmetric matrix."""
    x = jnp.pad(x, (0, x.shape[0] % 2))
    k = x.shape[0] // 2
    lower = jnp.pad(x[:, :k], ((1, 0), (0, 0)))
    corner = jnp.pad(x[k:, k:], ((0, k + 1), (0, 0)))
    row, column = np.indices((2 * k + 1, k), np.int32, sparse=True)
    return jnp.where(row <= column, corner, lower)


def unpack(packed: Float[Array, "n rows k"], d: int) -> Float[Array, "n d d"]:
    """Unpacks symmetric matrices [d, d]."""
    k = packed.shape[2]
    below = packed[:, k + 1 :]
    row, column = (x[None] for x in np.indices((k, k), np.int32, sparse=True))
    first, last = packed[:, 1 : k + 1], packed[:, :k]
    first = jnp.where(row >= column, first, first.mT)
    last = jnp.where(row <= column, last, last.mT)
    top = jnp.concatenate([first, below.mT], axis=2)
    return jnp.concatenate([top, jnp.concatenate([below, last], axis=2)], axis=1)[:, :d, :d]


def on_diagonal(row: Int[Array, " rows"], d: int) -> Bool[Array, "rows k"]:
    """Tells of rows of a packed matrix which of their numbers are of its diagonal."""
    behind = row[:, None] - jnp.arange(packed_shape(d)[1], dtype=row.dtype)[None]
    return (behind == 0) | (behind == 1)
