"""Gives each parameter its role, by which weight decay and trust ratios are decided.

A layer says the role when it makes the parameter, so nothing has to guess it from a name.
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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


# What Flax's own layers call them: Dense, Conv, Embed, attention's projections, norms.
_ROLES_BY_NAME = {
    "kernel": Role.KERNEL,
    "embedding": Role.KERNEL,
    "bias": Role.BIAS,
    "scale": Role.NORM_SCALE,
}


def roles_by_name(params: Any) -> Any:
    """Guesses roles by names and rank, for parameters whose layers did not say them.

    The last name counts: kernel and embedding are kernels, bias is a bias, scale a norm's scale,
    and a bias (or offset, as here) beside a scale a norm's offset. Under other names arrays of rank
    2 and more are kernels, and the rest biases.

    Returns:
      roles, a tree like the parameters.
    """
    parts = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in parts]
    there = set(names)

    def role(name: str, x: Any) -> Role:
        layer, _, last = name.rpartition("/")
        if last in ("bias", "offset") and f"{layer}/scale".removeprefix("/") in there:
            return Role.NORM_OFFSET
        return _ROLES_BY_NAME.get(last, Role.KERNEL if jnp.ndim(x) > 1 else Role.BIAS)

    roles = [role(name, x) for name, (_, x) in zip(names, parts)]
    return jax.tree.unflatten(jax.tree.structure(params), roles)
