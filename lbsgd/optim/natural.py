"""Preconditions gradients by the inverse of a damped Fisher: K-FAC and SP-NGD.

For a layer with factors A and G (Martens and Grosse 2015, section 6.3)

    pi = sqrt((tr A / d_A) / (tr G / d_G))
    nat = (G + sqrt(lambda) / pi I)^-1  grad  (A + pi sqrt(lambda) I)^-1

with its gradient as a matrix [d_G, d_A], the bias's in the last column. For each channel of a norm

    nat = [[a + l, b], [b, d + l]]^-1 (grad of scale, grad of offset),    l = norm_damping lambda

(unit-wise, Osawa et al. 2020). Parameters of no rule have a diagonal, grad / (D + lambda).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from lbsgd.models.curvature import DIAGONAL, KRONECKER, CurvedLayer

Layers = Mapping[str, CurvedLayer]


class NaturalState(NamedTuple):
    """Holds the inverses of damped statistics, by layer: "A" and "G", or "F" as [c, 3]."""

    inverses: Any


def precondition(layers: Layers) -> optax.GradientTransformationExtraArgs:
    """Makes the natural gradient.

    The update function needs the keywords `damping`, `norm_damping` and `statistics`, as
    `lbsgd.step.fisher` gives them: by layer, and under `DIAGONAL` a tree like the parameters, with
    None where a layer has a rule.

    Args:
      layers: those with a rule, by name.
    """

    def init(params: Any) -> NaturalState:
        def identity(d: int, dtype: Any) -> jax.Array:
            return jnp.eye(d, dtype=dtype)

        inverses = {}
        for name, layer in layers.items():
            dtype = _arrays(params, layer)[0].dtype
            if layer.kind == KRONECKER:
                inverses[name] = {
                    "A": identity(layer.inputs, dtype),
                    "G": identity(layer.outputs, dtype),
                }
            else:
                ones, zeros = jnp.ones(layer.outputs, dtype), jnp.zeros(layer.outputs, dtype)
                inverses[name] = {"F": jnp.stack([ones, zeros, ones], axis=-1)}
        return NaturalState(inverses)

    def update(
        gradient: Any,
        state: NaturalState,
        params: Any = None,
        *,
        statistics: Mapping[str, Any],
        damping: ArrayLike,
        norm_damping: ArrayLike,
        due: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> tuple[Any, NaturalState]:
        kept = inverses(statistics, state.inverses, due, layers, damping, norm_damping)
        natural = jax.tree.map(
            lambda g, d: None if g is None else g if d is None else g / (d + _as(d, damping)),
            gradient,
            statistics[DIAGONAL],
            is_leaf=lambda x: x is None,
        )
        for name, layer in layers.items():
            natural = _with(natural, layer, _natural(layer, _arrays(gradient, layer), kept[name]))
        return natural, NaturalState(kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _as(x: jax.Array, number: ArrayLike) -> jax.Array:
    return jnp.asarray(number).astype(x.dtype)


def inverses(
    statistics: Mapping[str, Any],
    before: Mapping[str, Any],
    due: Mapping[str, Any] | None,
    layers: Layers,
    damping: ArrayLike,
    norm_damping: ArrayLike,
) -> dict[str, dict[str, jax.Array]]:
    """Inverts the damped statistics that are due, those of one size one after the other.

    Args:
      before: the inverses that stay where a statistic is not due, or cannot be inverted in this
        arithmetic.
      due: like the statistics; None for all.
    """
    found: dict[str, dict[str, jax.Array]] = {name: {} for name in layers}
    by_size: dict[tuple[int, Any], list[tuple[str, str, jax.Array]]] = {}
    for name, layer in layers.items():
        if layer.kind == KRONECKER:
            for key, matrix in damped_factors(statistics[name], damping).items():
                by_size.setdefault((matrix.shape[0], matrix.dtype), []).append((name, key, matrix))
        else:
            f, old = statistics[name]["F"], before[name]["F"]
            new = unit_wise_inverse(f, _as(f, damping) * _as(f, norm_damping))
            is_due = True if due is None else due[name]["F"]
            found[name]["F"] = jnp.where(is_due & jnp.all(jnp.isfinite(new)), new, old)
    for items in by_size.values():
        matrices = jnp.stack([matrix for _, _, matrix in items])
        olds = jnp.stack([before[name][key] for name, key, _ in items])
        flags = jnp.array([True if due is None else due[name][key] for name, key, _ in items])
        stacked = inverse(matrices, olds, flags)
        for i, (name, key, _) in enumerate(items):
            found[name][key] = stacked[i]
    return found


def damped_factors(factors: Mapping[str, jax.Array], damping: ArrayLike) -> dict[str, jax.Array]:
    """Adds the damping to both factors of a layer, shared out by pi."""
    a, g = factors["A"], factors["G"]
    mean_a, mean_g = (jnp.trace(x) / x.shape[0] for x in (a, g))
    # Of a layer whose inputs or gradients are all 0, as of one that starts behind a scale of 0,
    # neither says how to share it.
    both = (mean_a > 0) & (mean_g > 0)
    pi = jnp.sqrt(jnp.where(both, mean_a, 1) / jnp.where(both, mean_g, 1))
    root = jnp.sqrt(_as(a, damping))
    return {"A": _plus_diagonal(a, pi * root), "G": _plus_diagonal(g, root / pi)}


def _plus_diagonal(x: Float[Array, "d d"], number: Float[Array, ""]) -> Float[Array, "d d"]:
    return x + number * jnp.eye(x.shape[0], dtype=x.dtype)


def inverse(
    matrices: Float[Array, "n d d"], before: Float[Array, "n d d"], due: Bool[Array, " n"]
) -> Float[Array, "n d d"]:
    """Inverts symmetric matrices by Cholesky.

    Args:
      before: what stays where one is not due, or not positive definite in this arithmetic.
      due: which are inverted at all.
    """

    def of_one(one: tuple[jax.Array, jax.Array, jax.Array]) -> Float[Array, "d d"]:
        matrix, old, is_due = one
        return jax.lax.cond(is_due, lambda: _inverse_or(matrix, old), lambda: old)

    # One after the other. jaxlib's LAPACK shares a batch out over the threads that run it, and
    # waits there: two batches at a time on two cores wait for each other (0.10.2, on a CPU).
    return jax.lax.map(of_one, (matrices, before, due))


def _inverse_or(matrix: Float[Array, "d d"], old: Float[Array, "d d"]) -> Float[Array, "d d"]:
    lower = jnp.linalg.cholesky(matrix)
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    of_lower = jax.lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    # Symmetric to the bit, as a product of a matrix and its transpose.
    new = jnp.einsum("ki,kj->ij", of_lower, of_lower, precision="highest")
    return jnp.where(jnp.all(jnp.isfinite(new)), new, old)


def unit_wise_inverse(f: Float[Array, "c 3"], damping: Float[Array, ""]) -> Float[Array, "c 3"]:
    """Inverts [[a, b], [b, d]] + damping I of each channel, given and returned as (a, b, d)."""
    a, b, d = f[:, 0] + damping, f[:, 1], f[:, 2] + damping
    determinant = a * d - b * b
    return jnp.stack([d, -b, a], axis=-1) / determinant[:, None]


def _arrays(tree: Any, layer: CurvedLayer) -> list[jax.Array]:
    """Takes a layer's arrays out of a tree like the parameters."""
    for part in layer.path:
        tree = tree[part]
    return [tree[name] for name in layer.parameters]


def _with(tree: Any, layer: CurvedLayer, arrays: list[jax.Array]) -> Any:
    """Puts a layer's arrays into a copy of a tree like the parameters."""

    def put(node: Any, path: tuple[str, ...]) -> Any:
        if not path:
            return {**node, **dict(zip(layer.parameters, arrays))}
        return {**node, path[0]: put(node[path[0]], path[1:])}

    return put(tree, layer.path)


def _natural(
    layer: CurvedLayer, gradient: list[jax.Array], found: Mapping[str, jax.Array]
) -> list[jax.Array]:
    """Multiplies a layer's gradient by the inverse of its Fisher."""
    if layer.kind != KRONECKER:
        (scale, offset), (a, b, d) = gradient, jnp.unstack(found["F"], axis=-1)
        return [a * scale + b * offset, b * scale + d * offset]
    kernel, *bias = gradient
    matrix = jnp.concatenate([kernel.reshape(-1, layer.outputs), *(b[None] for b in bias)])
    product = jnp.einsum(
        "ij,jk,kl->il", found["A"], matrix, found["G"], precision="highest", optimize="optimal"
    )
    rows = layer.inputs - len(bias)
    return [product[:rows].reshape(kernel.shape), *(product[rows] for _ in bias)]
