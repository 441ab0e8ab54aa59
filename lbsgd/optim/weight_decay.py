"""Decays weights in both forms, on the parameters that a mask selects.

Neither form is a term of the loss, so scaling the loss leaves it alone (Goyal et al., Remark 1).
"""

from typing import Any

import jax
import optax
from jaxtyping import Float

from lbsgd.optim.leaves import Leaf
from lbsgd.schedule.functions import Schedule


def coupled_weight_decay(weight_decay: float, mask: Any) -> optax.GradientTransformationExtraArgs:
    """Makes L2 regularisation, g <- g + lambda w, before momentum (Goyal et al., equation 8).

    Args:
      weight_decay: lambda.
      mask: like the parameters, True where they decay.
    """

    def update(gradient: Any, state: Any, params: Any, **_: Any) -> tuple[Any, Any]:
        def decay(
            g: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], decayed: bool
        ) -> Float[Leaf, "*shape"]:
            # The mask is Python's, so that what does not decay costs no operation.
            return g + weight_decay * w if decayed else g

        return jax.tree.map(decay, gradient, params, mask), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decoupled_weight_decay(
    learning_rate: Schedule, weight_decay: float, mask: Any
) -> optax.GradientTransformationExtraArgs:
    """Makes decay past the momentum, w <- w - eta lambda w (Loshchilov and Hutter 2019, AdamW).

    Takes and gives changes of the parameters, so it stands last. As in PyTorch's and optax's
    AdamW the decay is scaled by the whole learning rate eta_t. The update function needs the
    keyword `update_index`, t.
    """

    def update(
        change: Any, state: Any, params: Any, *, update_index: jax.typing.ArrayLike, **_: Any
    ) -> tuple[Any, Any]:
        # The rate of this very update, so that a schedule shrinks the decay along with the step.
        rate = learning_rate(update_index)

        def decay(
            delta: Float[Leaf, "*shape"], w: Float[Leaf, "*shape"], decayed: bool
        ) -> Float[Leaf, "*shape"]:
            # Scalars first: one number to multiply the array by.
            return delta - (rate.astype(w.dtype) * weight_decay) * w if decayed else delta

        return jax.tree.map(decay, change, params, mask), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
