"""Measures the norms of gradient, parameters and update of each layer, and its trust ratio.

A "layer" is one parameter array, as in the papers on LARS and LAMB.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def layer_names(params: Any) -> list[str]:
    """Names the parameter arrays, in the order of their numbers in `layer_statistics`."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def layer_norms(tree: Any) -> Float[Array, " arrays"]:
    """Computes the Euclidean norm of each array."""
    # Stacked, for a hundred scalars would be a hundred copies to the host.
    return jnp.stack([jnp.sqrt(jnp.sum(jnp.square(x))) for x in jax.tree.leaves(tree)])


def trust_ratios(opt_state: Any) -> list[Float[Array, ""]]:
    """Finds the layers' trust ratios in the optimizer's state; none unless the optimizer has them.

    Such an optimizer has a NamedTuple with a field `trust_ratios` in its state, a tree like the
    parameters of scalars.
    """

    # By the field, not by the type: anyone's transform may have ratios, and optim/ stays unknown.
    def has_ratios(part: Any) -> bool:
        return "trust_ratios" in getattr(part, "_fields", ())

    parts = filter(has_ratios, jax.tree.leaves(opt_state, is_leaf=has_ratios))
    return [ratio for part in parts for ratio in jax.tree.leaves(part.trust_ratios)]


def layer_statistics(
    gradients: Any, params: Any, changes: Any, opt_state: Any
) -> dict[str, Float[Array, " arrays"]]:
    """Measures one number of each parameter array, by the number's name.

    Args:
      gradients: of the loss alone, without weight decay.
      params: before the update.
      changes: what the update adds to them.
      opt_state: after the update.
    """
    statistics = {
        "gradient_norm": layer_norms(gradients),
        "parameter_norm": layer_norms(params),
        # Not of the parameters' difference, which has lost the last digits of a small change.
        "update_norm": layer_norms(changes),
    }
    ratios = trust_ratios(opt_state)
    return {**statistics, "trust_ratio": jnp.stack(ratios)} if ratios else statistics
