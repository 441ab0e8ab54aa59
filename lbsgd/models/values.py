"""Counts the values that normalize each other, and refuses so few that nothing is learned."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from lbsgd.config.dotted import is_dotted
from lbsgd.models.normalization import BatchNorm, GroupNorm
from lbsgd.system.errors import ConfigError

# Normalising one value leaves 0 of it, and two their order: no gradient passes either. (It may pass
# beside them where a block has another way, but what they are in is of no use.)
LEAST_VALUES = 3


@dataclasses.dataclass
class Values:
    """Collects, by a layer's path, how many values of an example share a mean and a variance.

    values = Values(examples=1)
    with nn.intercept_methods(values.intercept):
        jax.eval_shape(init)

    Attributes:
      examples: in the batch that is traced.
      training: whether it is traced as in training, where batch norm normalizes by its batch unless
        it is told not to.
      of_batch: layers whose values are of all examples of a worker; its own counts are of one.
      of_example: layers that normalize each example on its own.
    """

    examples: int
    training: bool
    of_batch: dict[str, int] = dataclasses.field(default_factory=dict)
    of_example: dict[str, int] = dataclasses.field(default_factory=dict)

    def intercept(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Notes the values of a batch or group norm, Flax's or lbsgd's."""
        # First, so that what is wrong with the module is an error of its own.
        result, module = call(*args, **kwargs), context.module
        # lbsgd's group norm is one of Flax's inside.
        inner = isinstance(module.parent, GroupNorm)
        if context.method_name == "__call__" and not inner and args:
            self._note("/".join(module.path), module, args, kwargs)
        return result

    def _note(self, path: str, module: Any, args: Any, kwargs: Any) -> None:
        shape = jnp.shape(args[0])
        if isinstance(module, BatchNorm | nn.BatchNorm):
            features = _feature_axes(module, len(shape))
            count = math.prod(n for axis, n in enumerate(shape) if axis not in features)
            # Else it is not known whose values they are.
            if self._of_its_batch(module, args, kwargs) and count % self.examples == 0:
                self.of_batch[path] = count // self.examples
        elif isinstance(module, GroupNorm):
            self.of_example[path] = math.prod(shape[1:]) // module.groups(shape[-1])
        elif isinstance(module, nn.GroupNorm | nn.InstanceNorm):
            self.of_example[path] = _values_of_group(module, shape)

    def _of_its_batch(self, module: Any, args: Any, kwargs: Any) -> bool:
        """Tells whether batch norm normalizes by its batch here, or would in training."""
        if not self.training:
            return True
        if isinstance(module, BatchNorm):
            return bool(kwargs.get("train"))
        flag = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
        return not (module.use_running_average if flag is None else flag)


def _axes(axes: Any, rank: int) -> set[int]:
    return {axis % rank for axis in (axes if isinstance(axes, (tuple, list)) else (axes,))}


def _feature_axes(module: Any, rank: int) -> set[int]:
    """Finds the axes that are not normalized over."""
    return _axes(getattr(module, "axis", -1), rank)


def _values_of_group(module: Any, shape: tuple[int, ...]) -> int:
    """Counts the values of a group of one example, of Flax's group or instance norm."""
    rank = len(shape)
    if isinstance(module, nn.InstanceNorm):
        features = _axes(module.feature_axes, rank)
        return math.prod(shape[axis] for axis in range(1, rank) if axis not in features)
    over = range(1, rank) if module.reduction_axes is None else _axes(module.reduction_axes, rank)
    groups = module.num_groups or shape[-1] // module.group_size
    return math.prod(shape[axis] for axis in over) // groups


def check_values(config: ml_collections.ConfigDict, values: Values, *, confusion: bool) -> None:
    """Checks that the normalization is one that trains.

    Args:
      config: of the run.
      confusion: whether gradient confusion is measured, whose minibatches are workers too.

    Raises:
      ConfigError: a layer of so few values that nothing below it learns.
    """
    ours = not is_dotted(config.model.name)
    if values.of_example:
        layer, count = _fewest(values.of_example)
        if count < LEAST_VALUES:
            kind = "model.normalization='group': " if ours else ""
            instead = "raise model.width" if ours else "normalise more channels together"
            raise ConfigError(
                f"{kind}{layer} normalises {_shown(count)} at a time, and no gradient passes it; "
                f"take larger images, or {instead}"
            )
    # Statistics that are frozen are of no batch, however few values it has.
    if values.of_batch and not config.batch_norm.frozen_statistics:
        _check_batch(config, *_fewest(values.of_batch), confusion, ours)


def _check_batch(
    config: ml_collections.ConfigDict, layer: str, of_example: int, confusion: bool, ours: bool
) -> None:
    n, synced = config.worker_batch_size, config.batch_norm.synced_workers
    raised = "worker_batch_size" + " or batch_norm.synced_workers" * ours
    sizes = {f"raise {raised}": n * synced}
    if confusion:
        sizes["raise diagnostics.confusion.batch_size"] = config.diagnostics.confusion.batch_size
    for remedy, examples in sizes.items():
        if examples * of_example < LEAST_VALUES:
            instead = "set model.normalization='group'" if ours else "group norm in its place"
            raise ConfigError(
                f"batch norm: {layer} normalises {_shown(examples * of_example)} of a channel at "
                f"a time, and no gradient passes it; {remedy}, take larger images, or {instead}"
            )


def _fewest(values: dict[str, int]) -> tuple[str, int]:
    layer = min(values, key=lambda name: values[name])
    return layer, values[layer]


def _shown(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"
