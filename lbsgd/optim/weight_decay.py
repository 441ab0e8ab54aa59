"""Decays weights in both forms, on the parameters that a mask selects.

Neither form is a term of the loss, so scaling the loss leaves it alone (Goyal et al., Remark 1).
"""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike
from jaxtyping import Float

from lbsgd.optim.leaves import Leaf, in_type_of
from lbsgd.optim.masks import Mask, flags, needed


def coupled_weight_decay(mask: Mask) -> optax.GradientTransformationExtraArgs:
    """Makes L2 regularisation, g <- g + lambda w, before momentum (Goyal et al., equation 8).

    The update function needs the keyword `weight_decay`, lambda.

    Args:
      mask: True where parameters decay: like them, or a function that makes such a tree of them.
    """

    def update(
        gradient: Any, state: Any, params: Any = None, *, weight_decay: ArrayLike, **_: Any
    ) -> tuple[Any, Any]:
        def decay(
            g: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], decayed: bool
        ) -> Float[Leaf, "*shape"]:
            # The mask is Python's, so that what does not decay costs no operation.
            return g + in_type_of(w, weight_decay) * w if decayed else g

        params = needed(params, "weight decay")
        return jax.tree.map(decay, gradient, params, flags(mask, params)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decoupled_weight_decay(mask: Mask) -> optax.GradientTransformationExtraArgs:
    """Makes decay past the momentum, w <- w - eta lambda w (Loshchilov and Hutter 2019, AdamW).

    Takes and gives changes of the parameters, so it stands last. As in PyTorch's and optax's
    AdamW the decay is scaled by the whole learning rate eta_t. The update function needs the
    keywords `learning_rate` and `weight_decay`.

    Args:
      mask: as in `coupled_weight_decay`.
    """

    def update(
        change: Any,
        state: Any,
        params: Any = None,
        *,
        learning_rate: ArrayLike,
        weight_decay: ArrayLike,
        **_: Any,
    ) -> tuple[Any, Any]:
        def decay(
            delta: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], decayed: bool
        ) -> Float[Leaf, "*shape"]:
            # Scalars first: one number to multiply the array by.
            factor = in_type_of(w, learning_rate) * in_type_of(w, weight_decay)
            return delta - factor * w if decayed else delta

        params = needed(params, "weight decay")
        return jax.tree.map(decay, change, params, flags(mask, params)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
