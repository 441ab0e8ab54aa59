"""Computes cross-entropy, and whether a prediction is wrong, of each example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "n outputs"],
    targets: Int[Array, " n"] | Float[Array, "n classes"],
    label_smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, " n"]:
    """Computes the cross-entropy of each example, in nats.

    The target is (1 - s) * t + s / outputs, with s the label smoothing (Szegedy et al. 2016,
    section 7) and t one-hot, or a distribution that is given.

    Args:
      targets: labels; or distributions over the first classes of the outputs.
    """
    log_p = jax.nn.log_softmax(logits)
    if targets.ndim == 1:
        of_target = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    else:
        share = targets.astype(log_p.dtype)
        of_target = jnp.sum(share * log_p[:, : share.shape[1]], axis=-1)
    # A mean over classes, not a one-hot product: 0 * -inf of an impossible class would be NaN.
    return -(1.0 - label_smoothing) * of_target - label_smoothing * jnp.mean(log_p, axis=-1)


def wrong_at(
    k: int, logits: Float[Array, "n classes"], labels: Int[Array, " n"]
) -> Bool[Array, " n"]:
    """Tells of each example whether its label is not among the k largest logits (top-k error).

    Among equal logits the lower class comes first. Logits that are not numbers are wrong.
    """
    # Counting what comes before the label needs no sort, and breaks ties alike on every backend.
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
    before = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
    # No comparison with NaN is true, so that a network that has diverged would be right always.
    return (jnp.sum(before, axis=-1) >= k) | jnp.any(jnp.isnan(logits), axis=-1)
