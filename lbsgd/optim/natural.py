"""Preconditions gradients by the inverse of a damped Fisher: K-FAC and SP-NGD.

For a layer with factors A and G (Martens and Grosse 2015, section 6.3)

    pi = sqrt((tr A / d_A) / (tr G / d_G))
    nat = (G + sqrt(lambda) / pi I)^-1  grad  (A + pi sqrt(lambda) I)^-1

with its gradient as a matrix [d_G, d_A], the bias's in the last column. For each channel of a norm

    nat = [[a + l, b], [b, d + l]]^-1 (grad of scale, grad of offset),    l = norm_damping lambda

(unit-wise, Osawa et al. 2020), or for all channels of a norm at once, (F + l I)^-1 grad. Parameters
of no rule have a diagonal, grad / (D + lambda).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lbsgd.models.curvature import DIAGONAL, UNIT_WISE, CurvedLayer
from lbsgd.optim.inversion import inverse, product

Layers = Mapping[str, CurvedLayer]


class Damping(NamedTuple):
    """Holds what is added to the diagonals of statistics.

    Attributes:
      value: lambda.
      of_norms: what multiplies it for norms.
    """

    value: ArrayLike
    of_norms: ArrayLike


def scale_by_natural_gradient(layers: Layers) -> optax.GradientTransformationExtraArgs:
    """Makes natural gradients, on one device.

    The update function needs the keywords `damping`, `norm_damping` and `statistics`: by layer
    ("A" and "G", or "F"), and under `DIAGONAL` a tree like the parameters, with None where a layer
    has a rule. What `lbsgd.optim.preconditioner` does on many devices is this.

    Args:
      layers: those with a rule, by name.
    """

    def update(
        gradient: Any,
        state: Any,
        params: Any = None,
        *,
        statistics: Mapping[str, Any],
        damping: ArrayLike,
        norm_damping: ArrayLike,
        **_: Any,
    ) -> tuple[Any, Any]:
        by = Damping(damping, norm_damping)
        natural = by_diagonal(gradient, statistics[DIAGONAL], damping)
        for name, layer in layers.items():
            arrays = _of_layer(layer, arrays_of(gradient, layer), statistics[name], by)
            natural = with_arrays(natural, layer, arrays)
        return natural, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _of_layer(
    layer: CurvedLayer, gradient: list[jax.Array], found: Mapping[str, jax.Array], damping: Damping
) -> list[jax.Array]:
    if layer.kind == UNIT_WISE:
        return by_channel(gradient, unit_wise_inverse(found["F"], damping))
    factors = {key: found[key] for key in layer.factors}
    by = {key: factor_damping(layer, key, _traces(factors), damping) for key in factors}
    inverses = {key: inverse(plus_diagonal(x, by[key])) for key, x in factors.items()}
    product = multiplied(inverses["A"], matrix_of(layer, gradient), inverses.get("G"))
    return arrays_of_matrix(layer, product, gradient)


def _traces(factors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {key: jnp.trace(x) for key, x in factors.items()}


def by_diagonal(gradient: Any, diagonal: Any, damping: ArrayLike) -> Any:
    """Divides by a damped diagonal where there is one, and leaves the rest as it is.

    Args:
      diagonal: a tree like the gradient, None for the rest.
    """
    return jax.tree.map(
        lambda g, d: g if g is None or d is None else g / (d + as_type_of(d, damping)),
        gradient,
        diagonal,
        is_leaf=lambda x: x is None,
    )


def as_type_of(x: jax.Array, number: ArrayLike) -> jax.Array:
    """Gives a number the type of an array."""
    return jnp.asarray(number).astype(x.dtype)


def factor_damping(
    layer: CurvedLayer, key: str, traces: Mapping[str, Float[Array, " *n"]], damping: Damping
) -> Float[Array, " *n"]:
    """Computes what is added to the diagonal of a factor; of two, shared out by pi.

    Args:
      key: of the factor.
      traces: of all factors of the layer; of several layers of one shape, `[n]`.
    """
    own = traces[key]
    value = as_type_of(own, damping.value)
    if len(layer.factors) == 1:
        return jnp.broadcast_to(value * as_type_of(own, damping.of_norms), own.shape)
    mean_a, mean_g = traces["A"] / layer.inputs, traces["G"] / layer.outputs
    # Of a layer whose inputs or gradients are all 0, as of one that starts behind a scale of 0,
    # neither says how to share it.
    both = (mean_a > 0) & (mean_g > 0)
    pi = jnp.sqrt(jnp.where(both, mean_a, 1) / jnp.where(both, mean_g, 1))
    return jnp.sqrt(value) * (pi if key == "A" else 1 / pi)


def plus_diagonal(x: Float[Array, "d d"], number: Float[Array, ""]) -> Float[Array, "d d"]:
    """Adds a number to the diagonal."""
    return x + number * jnp.eye(x.shape[0], dtype=x.dtype)


def unit_wise_inverse(f: Float[Array, "c 3"], damping: Damping) -> Float[Array, "c 3"]:
    """Inverts [[a, b], [b, d]] + l I of each channel, given and returned as (a, b, d)."""
    by = as_type_of(f, damping.value) * as_type_of(f, damping.of_norms)
    a, b, d = f[:, 0] + by, f[:, 1], f[:, 2] + by
    determinant = a * d - b * b
    # By rounding it may be negative, of what would not be definite then.
    determinant = jnp.where(determinant > 0, determinant, jnp.nan)
    return jnp.stack([d, -b, a], axis=-1) / determinant[:, None]


def by_channel(gradient: list[jax.Array], inverse: Float[Array, "c 3"]) -> list[jax.Array]:
    """Multiplies the gradients of scale and offset by the inverses of `unit_wise_inverse`."""
    (scale, offset), (a, b, d) = gradient, jnp.unstack(inverse, axis=-1)
    return [a * scale + b * offset, b * scale + d * offset]


def multiplied(
    left: Float[Array, "i j"],
    matrix: Float[Array, "j k"],
    right: Float[Array, "k l"] | None = None,
) -> Float[Array, "i l"]:
    """Computes left matrix right, at the precision of its type."""
    found = product(left, matrix)
    return found if right is None else product(found, right)


def matrix_of(layer: CurvedLayer, arrays: list[jax.Array]) -> Float[Array, "rows columns"]:
    """Makes the matrix that a layer's factors multiply, `[d_A, d_G]` or `[2 c, 1]`."""
    first, *others = arrays
    columns = layer.outputs if "G" in layer.factors else 1
    return jnp.concatenate([x.reshape(-1, columns) for x in (first, *others)])


def arrays_of_matrix(
    layer: CurvedLayer, matrix: Float[Array, "rows columns"], like: list[jax.Array]
) -> list[jax.Array]:
    """Takes a layer's arrays out of its matrix."""
    first = like[0].size // matrix.shape[1]
    parts = (matrix[:first], matrix[first:])
    return [part.reshape(x.shape) for part, x in zip(parts, like)]


def arrays_of(tree: Any, layer: CurvedLayer) -> list[jax.Array]:
    """Takes a layer's arrays out of a tree like the parameters."""
    for part in layer.path:
        tree = tree[part]
    return [tree[name] for name in layer.parameters]


def with_arrays(tree: Any, layer: CurvedLayer, arrays: list[Any]) -> Any:
    """Puts a layer's arrays into a copy of a tree like the parameters."""

    def put(node: Any, path: tuple[str, ...]) -> Any:
        if not path:
            return {**node, **dict(zip(layer.parameters, arrays))}
        return {**node, path[0]: put(node[path[0]], path[1:])}

    return put(tree, layer.path)
