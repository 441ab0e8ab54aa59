"""Gives each parameter its role, by which weight decay and trust ratios are decided.

A layer says the role when it makes the parameter, so nothing has to guess it from a name.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax import struct

from lbsgd.system.errors import ConfigError


class Role(enum.StrEnum):
    """Says what a parameter is in its layer."""

    KERNEL = "kernel"
    BIAS = "bias"
    NORM_SCALE = "norm scale"
    NORM_OFFSET = "norm offset"


class WithRole(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """Carries a parameter's role out of `init`: a box, by the protocol of `flax.linen.meta`."""

    value: Any
    role: Role = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """Takes the parameter out of its box."""
        return self.value

    def replace_boxed(self, val: Any) -> "WithRole":
        """Puts another value in the box."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "WithRole":
        """Keeps the role, whatever axes `nn.vmap` and `nn.scan` add."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "WithRole":
        """Keeps the role, whatever axes they remove."""
        return self


def with_role(role: Role, init: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Makes an initialiser that puts what `init` makes in its box: `kernel_init=with_role(...)`."""
    return lambda *args: WithRole(init(*args), role)


def split_roles(params: Any) -> tuple[Any, Any]:
    """Takes the parameters that `model.init` returned out of their boxes.

    Returns:
      params, roles: two trees of one structure, arrays and `Role`s.

    Raises:
      ConfigError: a parameter whose layer did not say its role.
    """

    def is_box(node: Any) -> bool:
        return isinstance(node, WithRole)

    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box):
        if not is_box(leaf):
            raise ConfigError(
                f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')} has no role; "
                "make it with lbsgd.models.roles.with_role(Role..., init)"
            )
    roles = jax.tree.map(lambda box: box.role, params, is_leaf=is_box)
    return nn.meta.unbox(params), roles
