"""Norms of gradient, parameters and update of each parameter array ("layer"), and trust ratios."""

from typing import Any

import jax
import jax.numpy as jnp


def layer_names(params: Any) -> list[str]:
    """Of the parameter arrays, in the order of their numbers in `layer_statistics`."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def layer_norms(tree: Any) -> jax.Array:
    """The Euclidean norm of each array, `[arrays]`."""
    return jnp.stack([jnp.sqrt(jnp.sum(jnp.square(x))) for x in jax.tree.leaves(tree)])


def trust_ratios(opt_state: Any) -> list[jax.Array]:
    """The layers' trust ratios; none unless the optimizer has them.

    Such an optimizer has a NamedTuple with a field `trust_ratios` in its state, a tree like the
    parameters of scalars.
    """

    def has_ratios(part: Any) -> bool:
        return "trust_ratios" in getattr(part, "_fields", ())

    parts = filter(has_ratios, jax.tree.leaves(opt_state, is_leaf=has_ratios))
    return [ratio for part in parts for ratio in jax.tree.leaves(part.trust_ratios)]


def layer_statistics(
    gradients: Any, params: Any, changes: Any, opt_state: Any
) -> dict[str, jax.Array]:
    """By name, one number of each parameter array, each `[arrays]`.

    Args:
      gradients: of the loss alone, without weight decay.
      params: before the update.
      changes: what the update adds to them.
      opt_state: after the update.
    """
    statistics = {
        "gradient_norm": layer_norms(gradients),
        "parameter_norm": layer_norms(params),
        "update_norm": layer_norms(changes),
    }
    ratios = trust_ratios(opt_state)
    return {**statistics, "trust_ratio": jnp.stack(ratios)} if ratios else statistics
