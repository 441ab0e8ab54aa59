"""Explains a run's network, its precision and its normalization."""

from typing import Any

import jax
import ml_collections
from clu import parameter_overview

from lbsgd.system.text import pluralize


def explain_network(c: ml_collections.ConfigDict, params: Any) -> str:
    """Says which network it is, and how large.

    Args:
      c: the config of the run.
      params: shapes of the parameters.
    """
    size = pluralize(parameter_overview.count_parameters(params), "parameter")
    arrays = pluralize(len(jax.tree.leaves(params)), "array")
    smoothing = f", label smoothing {c.label_smoothing:g}" if c.label_smoothing else ""
    return f"network: {c.model.name}, {size} in {arrays}, computed in {c.dtype}{smoothing}"


def explain_precision(c: ml_collections.ConfigDict) -> list[str]:
    """Explains the products of float32 in a line, if there are any."""
    if c.dtype == "float64":
        return []
    which = "products of float32"
    if c.dtype != "float32":
        which = "only the classifier has products of float32, they are"
    means = {
        "highest": 'in full on every device ("high" would be TF32 on a GPU)',
        "high": "TF32 on a GPU, three bfloat16 passes on a TPU, float32 on a CPU",
        "default": "TF32 on a GPU, one bfloat16 pass on a TPU, float32 on a CPU",
    }
    return [f"network: {which} at precision {c.matmul_precision!r}: {means[c.matmul_precision]}"]


def explain_normalization(c: ml_collections.ConfigDict, precise_examples: int) -> str:
    """Says what is normalized over what.

    Args:
      c: the config of the run.
      precise_examples: that the statistics of evaluation are taken over; 0 for running averages.
    """
    kind = c.model.normalization
    if kind == "group":
        return "group norm: of each example, in up to 32 groups of two or more channels"
    if kind == "none":
        return "normalization: none; convolutions have biases"
    return _explain_batch_norm(c, precise_examples)


def _explain_batch_norm(config: ml_collections.ConfigDict, precise_examples: int) -> str:
    c, n = config.batch_norm, config.worker_batch_size
    scope = f"per worker, over {pluralize(n, 'example')}"
    if c.synced_workers > 1:
        scope = f"synced over {c.synced_workers:,} workers, {c.synced_workers * n:,} examples"
    precise = ""
    if precise_examples:
        precise = f"; evaluated with statistics of {precise_examples:,} examples"
    return f"batch norm: {scope}; running averages with momentum {c.momentum:g}{precise}"
