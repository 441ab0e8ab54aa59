"""Cross-entropy, and whether a prediction is wrong, of each example."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of each example with (1 - s) * one-hot + s / classes (Szegedy et al. 2016).

    Args:
      logits: `[n, classes]`; labels: integers `[n]`.

    Returns:
      nats, `[n]`.
    """
    log_p = jax.nn.log_softmax(logits)
    of_label = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return -(1.0 - label_smoothing) * of_label - label_smoothing * jnp.mean(log_p, axis=-1)


def wrong_at(k: int, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the label is not among the k largest logits, bool `[n]`.

    Among equal logits the lower class comes first. Logits that are not numbers are wrong.
    """
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None]
    before = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
    return (jnp.sum(before, axis=-1) >= k) | jnp.any(jnp.isnan(logits), axis=-1)
