"""What is done to pixels on the devices: normalization, random erasing, mixup and CutMix.

What was drawn for each example comes with its batch (`lbsgd.data.mixing`).
"""

from typing import Any

import jax
import jax.numpy as jnp


def partner(rows: jax.Array) -> jax.Array:
    """For each row of a worker `[n, ...]` the one that it is mixed with: the next, cyclically."""
    return jnp.roll(rows, -1, axis=0)


def erase(images: jax.Array, boxes: jax.Array) -> jax.Array:
    """Sets a box of each image to 0, which after normalisation is the mean colour.

    Args:
      images: `[n, h, w, c]`; boxes: `erase_box` of `Mixing.draw`, `[n, 4]`.
    """
    return jnp.where(_inside(boxes, images), jnp.zeros_like(images), images)


def mix(images: jax.Array, share: jax.Array, boxes: jax.Array | None = None) -> jax.Array:
    """Mixes each image with its partner, in the images' dtype.

    CutMix, pixels within the box from the partner and the others the image's own, where there is
    a box; else mixup, share * own + (1 - share) * partner's.

    Args:
      images: `[n, h, w, c]`; share, boxes: `mix_share` and `mix_box` of `Mixing.draw`, `[n]` and
        `[n, 4]`.
    """
    others = partner(images)
    own = share.astype(images.dtype)[:, None, None, None]
    blended = own * images + (1 - own) * others
    if boxes is None:
        return blended
    cut = jnp.where(_inside(boxes, images), others, images)
    return jnp.where(boxes[:, 2, None, None, None] > 0, cut, blended)


def _inside(boxes: jax.Array, images: jax.Array) -> jax.Array:
    """Whether a pixel lies in its image's box, bool `[n, h, w, 1]`."""
    top, left, height, width = (boxes[:, i, None, None, None] for i in range(4))
    row = jnp.arange(images.shape[1], dtype=boxes.dtype)[None, :, None, None]
    column = jnp.arange(images.shape[2], dtype=boxes.dtype)[None, None, :, None]
    rows = (row >= top) & (row < top + height)
    return rows & (column >= left) & (column < left + width)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> jax.Array:
    """uint8 images `[..., c]` to (x / 255 - mean) / std, by channel."""
    channels = (1,) * (images.ndim - 1) + (-1,)
    offset = jnp.asarray(mean, dtype).reshape(channels)
    scale = jnp.asarray(std, dtype).reshape(channels)
    return (images.astype(dtype) / 255.0 - offset) / scale
