"""Tells the layers that a module is made of, and what follows of their parameters.

Flax calls an interceptor for every method of every module that it traces. So a parameter's role
follows from the class of the module that made it, and not from what the parameter is called.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.linen.recurrent import DenseParams

from lbsgd.models.normalization import BatchNorm
from lbsgd.models.roles import Role
from lbsgd.system.errors import ConfigError

_LINEAR = {"kernel": Role.KERNEL, "bias": Role.BIAS}
_NORM = {"scale": Role.NORM_SCALE, "bias": Role.NORM_OFFSET}
# Attention and recurrent cells are made of these.
_ROLES: Mapping[type[Any], Mapping[str, Role]] = {
    nn.Dense: _LINEAR,
    nn.DenseGeneral: _LINEAR,
    DenseParams: _LINEAR,
    nn.Einsum: _LINEAR,
    nn.Conv: _LINEAR,
    nn.ConvLocal: _LINEAR,
    nn.ConvTranspose: _LINEAR,
    nn.Embed: {"embedding": Role.KERNEL},
    nn.BatchNorm: _NORM,
    nn.LayerNorm: _NORM,
    nn.GroupNorm: _NORM,
    nn.RMSNorm: _NORM,
    nn.InstanceNorm: _NORM,
    nn.WeightNorm: {"scale": Role.NORM_SCALE},
}
_OF_FLAX = tuple(cls for cls, names in _ROLES.items() if names is _NORM)
_NORMS: tuple[type[Any], ...] = (BatchNorm, *_OF_FLAX)
# Layers that are not the same in training and evaluation: by whether they are, or by a rate that
# makes them so.
_OF_TRAINING: Mapping[type[Any], str | None] = {
    BatchNorm: None,
    nn.BatchNorm: None,
    nn.SpectralNorm: None,
    nn.Dropout: "rate",
    nn.MultiHeadDotProductAttention: "dropout_rate",
}

Path = tuple[str, ...]


@dataclasses.dataclass
class Layers:
    """Collects the classes of a module's layers by path, while it is traced.

    layers = Layers()
    with nn.intercept_methods(layers.intercept):
        variables = jax.eval_shape(init)

    Attributes:
      of_training: classes of layers that are not the same in training and evaluation: nn.BatchNorm.
    """

    error: Callable[[str], ConfigError] = ConfigError
    # Modules that share a scope have one path.
    classes: dict[Path, list[type[nn.Module]]] = dataclasses.field(default_factory=dict)
    of_training: set[str] = dataclasses.field(default_factory=set)

    def intercept(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Notes the class of the module whose method is called.

        Raises:
          ConfigError: its statistics are to be shared over a mapped axis.
        """
        module = context.module
        _check_axis(module, self.error)
        self.of_training.update(_of_training(module))
        known = self.classes.setdefault(module.path, [])
        # A lifted layer, as of nn.remat, calls a lambda first, at the path of its parent.
        if type(module) not in known and context.method_name.isidentifier():
            known.append(type(module))
        return call(*args, **kwargs)

    def class_and_role(self, path: Path) -> tuple[str, Role] | None:
        """Infers the role of the parameter at a path, and names the class; None for unknown."""
        for cls in self.classes.get(path[:-1], ()):
            for known, roles in _ROLES.items():
                # Weight norm's are called by the whole path of what they scale.
                name = path[-1].rpartition("/")[-1]
                if issubclass(cls, known) and name in roles:
                    return known.__name__, roles[name]
        return None

    def norms(self) -> dict[str, int]:
        """Counts the normalization layers by class; lbsgd's own batch norm is not Flax's."""
        found = [known for cls in self.classes.values() for known in _NORMS if _any_is(cls, known)]
        return dict(Counter(map(_shown, found)))

    def left_by_ours(self, batch_stats: Any) -> Any:
        """Marks the statistics that are moments of lbsgd's own batch norm: a tree of bools."""

        def is_ours(path: tuple[Any, ...], _: Any) -> bool:
            names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
            return _any_is(self.classes.get(names[:-1], ()), BatchNorm)

        return jax.tree_util.tree_map_with_path(is_ours, batch_stats)


def _shown(cls: type) -> str:
    return f"{'nn.' * (cls is not BatchNorm)}{cls.__name__}"


def _of_training(module: nn.Module) -> list[str]:
    """Names the class of a layer that is not the same in training and evaluation."""
    return [
        _shown(cls)
        for cls, rate in _OF_TRAINING.items()
        if isinstance(module, cls) and (rate is None or getattr(module, rate) > 0)
    ]


def _any_is(classes: Any, known: type) -> bool:
    return any(issubclass(cls, known) for cls in classes)


def _check_axis(module: nn.Module, error: Callable[[str], ConfigError]) -> None:
    """Refuses what would depend on where the workers are."""
    axis = getattr(module, "axis_name", None)
    if isinstance(module, _OF_FLAX) and axis is not None:
        raise error(
            f"has {type(module).__name__} {'/'.join(module.path)} with axis_name={axis!r}, which "
            "would normalize over devices, and a run does not depend on those; leave axis_name "
            "out, and it normalizes over the examples of a worker"
        )
