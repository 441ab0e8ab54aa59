"""Packs symmetric matrices, half of which need not be sent.

Of [d, d], d even and k = d / 2, the lower triangle of the first k columns and the upper triangle of
the last k rows and columns fill a rectangle [d + 1, k] together (the "rectangular full packed
format" of LAPACK; Gustavson et al. 2010). Slices and selections make it, for gathering single
numbers is slow on an accelerator.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def packed_size(d: int) -> int:
    """Counts the numbers of a packed matrix [d, d]."""
    even = d + d % 2
    return even * (even + 1) // 2


def pack(x: Float[Array, "n d d"]) -> Float[Array, "n packed"]:
    """Packs symmetric matrices."""
    x = jnp.pad(x, ((0, 0), *((0, x.shape[-1] % 2),) * 2))
    k = x.shape[-1] // 2
    lower = jnp.pad(x[:, :, :k], ((0, 0), (1, 0), (0, 0)))
    corner = jnp.pad(x[:, k:, k:], ((0, 0), (0, k + 1), (0, 0)))
    row, column = np.indices((2 * k + 1, k), np.int32, sparse=True)
    return jnp.where((row <= column)[None], corner, lower).reshape(x.shape[0], -1)


def unpack(packed: Float[Array, "n packed"], d: int) -> Float[Array, "n d d"]:
    """Unpacks symmetric matrices [d, d]."""
    k = (d + d % 2) // 2
    rectangle = packed.reshape(-1, 2 * k + 1, k)
    below = rectangle[:, k + 1 :]
    row, column = (x[None] for x in np.indices((k, k), np.int32, sparse=True))
    first, last = rectangle[:, 1 : k + 1], rectangle[:, :k]
    first = jnp.where(row >= column, first, first.mT)
    last = jnp.where(row <= column, last, last.mT)
    top = jnp.concatenate([first, below.mT], axis=2)
    return jnp.concatenate([top, jnp.concatenate([below, last], axis=2)], axis=1)[:, :d, :d]


def on_diagonal(index: Array, d: int) -> Bool[Array, " *shape"]:
    """Tells of indices of a packed matrix whether they are of its diagonal."""
    k = (d + d % 2) // 2
    row, column = index // k, index % k
    return (row == column) | (row == column + 1)
