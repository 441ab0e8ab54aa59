"""Names what the trees of gradients and parameters may hold, and gives numbers their types."""

from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

# Transforms work in anyone's training loop, which may keep its parameters on the host.
Leaf = jax.Array | np.ndarray


def type_in_jax(x: Leaf) -> np.dtype[Any]:
    """Returns an array's type, or float32 for float64 on the host where 64-bit types are off."""
    return jax.dtypes.canonicalize_dtype(x.dtype)


def in_type_of(x: Leaf, number: ArrayLike) -> Any:
    """Converts a real scalar to the type of an array that it is to be combined with."""
    # Strict promotion refuses a float32 rate beside bfloat16; Python's numbers it takes.
    if isinstance(number, int | float | complex):
        return float(number.real)
    return number.astype(type_in_jax(x))
