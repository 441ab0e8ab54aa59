"""Finds the keys of batch norm that a network does not use: known only once it is traced."""

import jax
import ml_collections

from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import set_value, value_of
from lbsgd.config.unused import Unused
from lbsgd.models.keys import KEYS, OF_BATCH_NORM
from lbsgd.models.networks import Outline


def explain_unused_batch_norm(c: ml_collections.ConfigDict, outline: Outline) -> list[str]:
    """Names the keys that were set for a batch norm that the network has not, in a line, if any."""
    unused = unused_batch_norm_keys(c, outline)
    return [f"without effect: {'; '.join(map(str, unused))}"] if unused else []


def unused_batch_norm_keys(c: ml_collections.ConfigDict, outline: Outline) -> list[Unused]:
    """Finds the keys away from their defaults that only lbsgd's batch norm uses, if there is none.

    Args:
      c: the config of the run.
    """
    if not is_dotted(c.model.name) or any(jax.tree.leaves(outline.of_step)):
        return []
    words = "lbsgd.models.normalization.BatchNorm, which the network has not"
    if "nn.BatchNorm" in outline.norms:
        words = "lbsgd.models.normalization.BatchNorm; nn.BatchNorm has a momentum of its own"
    return [
        Unused(key, value_of(c, key), words)
        for key in OF_BATCH_NORM
        if value_of(c, key) != KEYS[key].default
    ]


def reset_unused_batch_norm(
    c: ml_collections.ConfigDict, outline: Outline
) -> ml_collections.ConfigDict:
    """Copies a config with those keys at their defaults; frozen."""
    effective = ml_collections.ConfigDict(c)
    for key in unused_batch_norm_keys(c, outline):
        set_value(effective, key.key, KEYS[key.key].default)
    return ml_collections.FrozenConfigDict(effective)
