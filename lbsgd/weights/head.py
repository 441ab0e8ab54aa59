"""Finds the head of a network: what has to be another where there are other classes."""

import jax
import ml_collections

from lbsgd.checkpoint.manifest import named_leaves
from lbsgd.models.networks import Network, build_network
from lbsgd.system.errors import ConfigError
from lbsgd.weights.matching import HeadAxes

_OWN: HeadAxes = {"params/classifier/kernel": (1,), "params/classifier/bias": (0,)}


def head_axes(config: ml_collections.ConfigDict, network: Network, outputs: int) -> HeadAxes:
    """Finds the arrays whose shapes follow from the number of outputs, and their axes that do.

    Another's module is built with one output more, to see what changes.

    Args:
      config: of the run.
      network: that has so many outputs.
    """
    if network.named is None:
        return _OWN
    try:
        other = build_network(config, outputs + 1, network.images.shape[1:])
        shapes, more = (variable_shapes(net) for net in (network, other))
    except ConfigError:
        return {}  # it cannot have another number
    return {
        name: tuple(i for i, (a, b) in enumerate(zip(shape, more[name])) if a != b)
        for name, shape in shapes.items()
        if name in more
    }


def variable_shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Traces the shapes of a network's variables, by name."""
    params, batch_stats = jax.eval_shape(lambda: network.initialize())
    return {
        name: leaf.shape
        for name, leaf in named_leaves({"params": params, "batch_stats": batch_stats}).items()
    }
