"""Finds the gradients of max pooling in a traced function, to take them by slices instead."""

import math
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float

from lbsgd.models.max_pooling import to_first_maxima


def is_max_pooling(equation: core.JaxprEqn) -> bool:
    """Tells whether an equation is the gradient of max pooling over two dimensions side by side."""
    if equation.primitive is not lax.select_and_scatter_add_p:
        return False
    params = equation.params
    window, strides = params["window_dimensions"], params["window_strides"]
    over = [axis for axis, size in enumerate(window) if size > 1]
    whole = all(
        strides[axis] == 1 and params["padding"][axis] == (0, 0)
        for axis in range(len(window))
        if axis not in over
    )
    side_by_side = len(over) == 2 and over[1] == over[0] + 1
    return whole and side_by_side and params["select_prim"] is lax.ge_p


def scatter_to_maxima(
    gradient: Float[Array, "..."], pooled: Float[Array, "..."], params: Any
) -> Float[Array, "..."]:
    """Computes the gradient of max pooling as `models.max_pooling` does.

    Args:
      gradient: by the outputs.
      pooled: the inputs, whose maxima were taken.
      params: of the equation, one that `is_max_pooling`.
    """
    first = next(axis for axis, size in enumerate(params["window_dimensions"]) if size > 1)
    two = slice(first, first + 2)

    def images(x: jax.Array) -> jax.Array:
        return x.reshape(math.prod(x.shape[:first]), *x.shape[two], math.prod(x.shape[first + 2 :]))

    of_pooling = (params[key][two] for key in ("window_dimensions", "window_strides", "padding"))
    return to_first_maxima(images(gradient), images(pooled), *of_pooling).reshape(pooled.shape)
