"""Normalizes, erases and mixes pixels on the devices: random erasing, mixup and CutMix.

What was drawn for each example comes with its batch (`lbsgd.data.mixing`).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8


def partner(rows: Shaped[Array, " n *row"]) -> Shaped[Array, " n *row"]:
    """Gives for each row of a worker the one that it is mixed with: the next, cyclically."""
    # Of the same worker, so that devices exchange nothing; its rows are in random order already.
    return jnp.roll(rows, -1, axis=0)


def erase(images: Float[Array, "n h w c"], boxes: Int[Array, "n 4"]) -> Float[Array, "n h w c"]:
    """Sets a box of each image to 0, which after normalisation is the mean colour.

    Random erasing (Zhong et al. 2017).

    Args:
      boxes: `erase_box` of `Mixing.draw`: top, left, height and width.
    """
    return jnp.where(_inside(boxes, images), jnp.zeros_like(images), images)


def mix(
    images: Float[Array, "n h w c"],
    share: Float[Array, " n"],
    boxes: Int[Array, "n 4"] | None = None,
) -> Float[Array, "n h w c"]:
    """Mixes each image with its partner, in the images' dtype.

    CutMix (Yun et al. 2019), pixels within the box from the partner and the others the image's own,
    where there is a box; else mixup (Zhang et al. 2018), share * own + (1 - share) * partner's.

    Args:
      share, boxes: `mix_share` and `mix_box` of `Mixing.draw`.
    """
    others = partner(images)
    blended = blend(share, images, others)
    if boxes is None:
        return blended
    cut = jnp.where(_inside(boxes, images), others, images)
    # Both are computed, and selected: whether an example is cut or blended is not known in tracing.
    return jnp.where(boxes[:, 2, None, None, None] > 0, cut, blended)


def blend(
    share: Float[Array, " n"], own: Float[Array, " n *row"], others: Float[Array, " n *row"]
) -> Float[Array, " n *row"]:
    """Blends rows: share * own + (1 - share) * others, in their dtype."""
    share = jnp.expand_dims(share.astype(own.dtype), range(1, own.ndim))
    return share * own + (1 - share) * others


def _inside(boxes: Int[Array, "n 4"], images: Float[Array, "n h w c"]) -> Bool[Array, "n h w 1"]:
    """Tells of each pixel whether it lies in its image's box."""
    # Slices of a size that is traced do not exist; a mask has the size of the image.
    top, left, height, width = (boxes[:, i, None, None, None] for i in range(4))
    row = jnp.arange(images.shape[1], dtype=boxes.dtype)[None, :, None, None]
    column = jnp.arange(images.shape[2], dtype=boxes.dtype)[None, None, :, None]
    rows = (row >= top) & (row < top + height)
    return rows & (column >= left) & (column < left + width)


def normalize(
    images: UInt8[Array, "*rows c"], mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Float[Array, "*rows c"]:
    """Normalizes pixels by channel: (x / 255 - mean) / std.

    Args:
      mean, std: of each channel, or one for all, of pixels from 0 to 1.
      dtype: of the result, and what is computed in.
    """
    # Broadcast by hand, for `jax_numpy_rank_promotion` may be set to raise.
    channels = (1,) * (images.ndim - 1) + (-1,)
    offset = jnp.asarray(mean, dtype).reshape(channels)
    scale = jnp.asarray(std, dtype).reshape(channels)
    # On the devices: from the host images cross as bytes, a quarter of what float32 takes.
    return (images.astype(dtype) / 255.0 - offset) / scale
