"""Finds the gradients of max pooling in a traced function, to take them by slices instead.

JAX's is one operation, select and scatter. XLA for CPUs takes it apart into windows of values and
indices, which for ResNet's stem is several times slower than what is here.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float, Int16

# Of rows and columns.
Sizes = tuple[int, ...]
Images = Float[Array, "n h w c"]


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
    """Computes the gradient of max pooling by slices.

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
    return _to_first_maxima(images(gradient), images(pooled), *of_pooling).reshape(pooled.shape)


def _to_first_maxima(
    gradient: Float[Array, "n oh ow c"],
    pooled: Images,
    window: Sizes,
    strides: Sizes,
    padding: tuple[Sizes, Sizes],
) -> Images:
    """Adds the gradient by each output to the first maximum of its window, row by row.

    Args:
      gradient: by the outputs.
      pooled: the inputs, whose maxima were taken.
      window, strides, padding: of rows and columns.

    Returns:
      the gradient by the inputs, as that of `flax.linen.max_pool`.
    """
    where = _first_maxima(pooled, gradient.shape[1:3], window, strides, padding)
    phases = [
        [
            _of_phase(where, gradient, (a, b), pooled.shape[1:3], window, strides, padding)
            for b in range(strides[1])
        ]
        for a in range(strides[0])
    ]
    whole = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    n, u, s, v, t, c = whole.shape
    return whole.reshape(n, u * s, v * t, c)[:, : pooled.shape[1], : pooled.shape[2]]


def _first_maxima(
    x: Images, outputs: Sizes, window: Sizes, strides: Sizes, padding: tuple[Sizes, Sizes]
) -> Int16[Array, "n oh ow c"]:
    """Finds where in its window the first maximum of each output is: row * columns + column."""
    # At the end also what no window reaches is cut off, by a negative padding.
    sides = [
        (lo, (count - 1) * s + taps - size - lo, 0)
        for (lo, _), count, s, taps, size in zip(padding, outputs, strides, window, x.shape[1:3])
    ]
    least = jnp.asarray(-jnp.inf, x.dtype)
    padded = lax.pad(x, least, [(0, 0, 0), *sides, (0, 0, 0)])
    slices = [
        padded[
            :,
            i : i + (outputs[0] - 1) * strides[0] + 1 : strides[0],
            j : j + (outputs[1] - 1) * strides[1] + 1 : strides[1],
        ]
        for i, j in itertools.product(*map(range, window))
    ]
    best, where = slices[0], jnp.zeros(slices[0].shape, jnp.int16)
    for at, seen in enumerate(slices[1:], 1):
        greater = seen > best
        best = jnp.where(greater, seen, best)
        where = jnp.where(greater, jnp.int16(at), where)
    return where


def _of_phase(
    where: Int16[Array, "n oh ow c"],
    dy: Float[Array, "n oh ow c"],
    phase: Sizes,
    inputs: Sizes,
    window: Sizes,
    strides: Sizes,
    padding: tuple[Sizes, Sizes],
) -> Images:
    """Computes the gradient by the inputs at (u * s + a, v * t + b), of phase (a, b)."""
    counts = [-(-size // s) for size, s in zip(inputs, strides)]
    total = jnp.zeros((len(dy), *counts, dy.shape[-1]), dy.dtype)
    for at, places in enumerate(itertools.product(*map(range, window))):
        # An input at s * u + a is at place i of the window of output u + shift, if that is whole.
        away = [a + lo - i for a, (lo, _), i in zip(phase, padding, places)]
        if any(d % s for d, s in zip(away, strides)):
            continue
        shifts = [d // s for d, s in zip(away, strides)]
        taken = jnp.where(where == at, dy, jnp.zeros((), dy.dtype))
        sides = [
            (-shift, count - size + shift, 0)
            for shift, count, size in zip(shifts, counts, dy.shape[1:3])
        ]
        total = total + lax.pad(taken, jnp.zeros((), dy.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
    return total
