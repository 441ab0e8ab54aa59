"""Explains a run's network, its precision and its normalization."""

import jax
import ml_collections
from clu import parameter_overview

from lbsgd.config.dotted import Named, is_dotted
from lbsgd.models.networks import Outline
from lbsgd.system.text import pluralize


def explain_network(
    c: ml_collections.ConfigDict, named: Named | None, outline: Outline
) -> list[str]:
    """Says which network it is, and how large; of another's, whose, and where its roles are from.

    Args:
      c: the config of the run.
      named: whose network it is; None for lbsgd's own.
    """
    size = pluralize(parameter_overview.count_parameters(outline.params), "parameter")
    arrays = pluralize(len(jax.tree.leaves(outline.params)), "array")
    line = f"network: {c.model.name}, {size} in {arrays}, computed in {c.dtype}"
    if named is None:
        return [line]
    roles = ", ".join(f"{number:,} by {source}" for source, number in outline.sources.items())
    return [line, f"network: roles of parameters: {roles}"]


def explain_precision(c: ml_collections.ConfigDict) -> list[str]:
    """Explains the products of float32 in a line, if there are any."""
    if c.dtype == "float64":
        return []
    which = "products of float32"
    # Another's network may have layers that compute in float32 whatever it is told.
    if c.dtype != "float32" and not is_dotted(c.model.name):
        which = "only the classifier has products of float32, they are"
    means = {
        "highest": 'in full on every device ("high" would be TF32 on a GPU)',
        "high": "TF32 on a GPU, three bfloat16 passes on a TPU, float32 on a CPU",
        "default": "TF32 on a GPU, one bfloat16 pass on a TPU, float32 on a CPU",
    }
    return [f"network: {which} at precision {c.matmul_precision!r}: {means[c.matmul_precision]}"]


def explain_normalization(
    c: ml_collections.ConfigDict, outline: Outline, precise_examples: int
) -> str:
    """Says what is normalized over what.

    Args:
      c: the config of the run.
      precise_examples: that the statistics of evaluation are taken over; 0 for running averages.
    """
    if is_dotted(c.model.name):
        return _explain_norms(c, outline, precise_examples)
    kind = c.model.normalization
    if kind == "group":
        return "group norm: of each example, in up to 32 groups of two or more channels"
    if kind == "none":
        return "normalization: none; convolutions have biases"
    return _explain_batch_norm(c, precise_examples)


def _explain_norms(c: ml_collections.ConfigDict, outline: Outline, precise_examples: int) -> str:
    """Says what is known of the normalization of another's network."""
    if not outline.norms:
        return "normalization: no layer of Flax's or lbsgd's"
    layers = ", ".join(f"{number:,} {cls}" for cls, number in outline.norms.items())
    lines = [f"normalization: {layers}"]
    if "nn.BatchNorm" in outline.norms:
        examples = pluralize(c.worker_batch_size, "example")
        lines.append(f"nn.BatchNorm per worker, over {examples}, with a momentum of its own")
    if "BatchNorm" in outline.norms:
        lines.append(_explain_batch_norm(c, precise_examples))
    return "; ".join(lines)


def _explain_batch_norm(config: ml_collections.ConfigDict, precise_examples: int) -> str:
    c, n = config.batch_norm, config.worker_batch_size
    if c.frozen_statistics:
        return "batch norm: by the running averages that the run starts with, which do not move"
    scope = f"per worker, over {pluralize(n, 'example')}"
    if c.synced_workers > 1:
        scope = f"synced over {c.synced_workers:,} workers, {c.synced_workers * n:,} examples"
    precise = ""
    if precise_examples:
        precise = f"; evaluated with statistics of {precise_examples:,} examples"
    return f"batch norm: {scope}; running averages with momentum {c.momentum:g}{precise}"
