"""Gives each parameter its role, by which weight decay and trust ratios are decided.

A layer of lbsgd's says the role when it makes the parameter, so nothing has to guess it from a
name. Of Flax's layers it follows from their class (`lbsgd.models.layers`).
"""

import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import noun, short_repr

# Parameters without a role, in one message.
_MOST_SHOWN = 3


class Role(enum.StrEnum):
    """Says what a parameter is in its layer."""

    KERNEL = "kernel"
    BIAS = "bias"
    NORM_SCALE = "norm scale"
    NORM_OFFSET = "norm offset"


_WORDS = ", ".join(map(repr, map(str, Role)))


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


def split_roles(
    params: Any, infer: Callable[[tuple[str, ...], tuple[int, ...]], Role | None] | None = None
) -> tuple[Any, Any]:
    """Takes the parameters that `module.init` returned out of their boxes.

    Args:
      infer: (path, shape) -> the role of a parameter that is in no box of a role; None for unknown.

    Returns:
      params, roles: two trees of one structure, arrays and `Role`s.

    Raises:
      ConfigError: parameters without a role.
    """

    def is_box(node: Any) -> bool:
        return isinstance(node, nn.meta.AxisMetadata)

    unboxed, without = nn.meta.unbox(params), []

    def role_of(path: tuple[Any, ...], leaf: Any) -> Role | None:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        shape = nn.meta.unbox(leaf).shape
        role = _role_of_box(leaf) or (infer and infer(names, shape))
        if role is None:
            without.append(f"{'/'.join(names)} of shape {shape}")
        return role

    roles = jax.tree_util.tree_map_with_path(role_of, params, is_leaf=is_box)
    if without:
        raise ConfigError(_no_role(without))
    return unboxed, roles


def _role_of_box(node: Any) -> Role | None:
    """Finds the role in a box, or in one of those within it; None without one."""
    while isinstance(node, nn.meta.AxisMetadata):
        if isinstance(node, WithRole):
            return node.role
        # Of flax's own boxes each has its content in `value`.
        node = getattr(node, "value", None)
    return None


def _no_role(parameters: list[str]) -> str:
    shown, more = ", ".join(parameters[:_MOST_SHOWN]), len(parameters) - _MOST_SHOWN
    if more > 0:
        shown += f" and {more:,} more"
    return (
        f"{noun(len(parameters), 'parameter')} without a role: {shown}; give each one of {_WORDS}: "
        "where it is made, by lbsgd.models.roles.with_role(Role..., init), or by the function of "
        "path and shape that model.roles names"
    )


def role_named(word: Any) -> Role:
    """Finds the role that a word names: "kernel".

    Raises:
      ConfigError: there is none.
    """
    try:
        return Role(word)
    except ValueError as error:
        raise ConfigError(f"{short_repr(word)} is no role; roles are {_WORDS}") from error


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
