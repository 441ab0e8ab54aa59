"""Selects, by their roles, the parameters that decay and those that have a trust ratio."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from lbsgd.models.roles import Role, role_named, roles_by_name
from lbsgd.system.errors import ConfigError

# Roles: a tree like the parameters (or like the upper part of theirs), a function of them, or None.
Roles = Any
# Likewise of True and False.
Mask = Any

# Goyal et al. (section 5.1) spare the coefficients of batch norm, and say nothing of biases.
# MLPerf's reference of LARS spares both, from decay and from trust ratios.
DECAYED_ROLES = frozenset({Role.KERNEL})
SCALED_ROLES = frozenset({Role.KERNEL})


def decayed(roles: Roles, those: Iterable[str] = DECAYED_ROLES) -> Mask:
    """Tells which parameters decay: kernels, so neither norm parameters nor biases.

    Args:
      those: the roles that decay instead.

    Raises:
      ConfigError: one of them is no role.
    """
    return _those(frozenset(map(role_named, those)), roles)


def scaled(roles: Roles) -> Mask:
    """Tells which parameters have a trust ratio, with LARS and LAMB: kernels."""
    return _those(SCALED_ROLES, roles)


def _those(chosen: frozenset[Role], roles: Roles) -> Mask:
    """Makes a mask like the roles; a function where they are known of given parameters alone.

    Raises:
      ConfigError: what is said of a parameter is no role.
    """
    of_params: Callable[[Any], Any] = roles_by_name if roles is None else roles
    if callable(of_params):
        return lambda params: _those(chosen, of_params(params))
    return jax.tree_util.tree_map_with_path(lambda path, role: _role(path, role) in chosen, roles)


def _role(path: tuple[Any, ...], role: Any) -> Role:
    """Finds the role that is said of a parameter, as a `Role` or by its word."""
    try:
        return role_named(role)
    except ConfigError as error:
        # Else one that is misspelt would neither decay nor be scaled, and nothing would tell.
        raise ConfigError(f"the roles, of the parameter {_name(path)}: {error}") from error


def flags(mask: Mask, params: Any) -> Any:
    """Makes a tree like the parameters of what a mask says of each.

    Raises:
      ValueError: of one it says nothing.
    """
    tree = mask(params) if callable(mask) else mask
    # By path: parts that `optax.masked` leaves out are not there, of which nothing is to be said.
    said = dict(jax.tree_util.tree_leaves_with_path(tree))
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    return jax.tree.unflatten(structure, [_of_path(path, said) for path, _ in paths])


def _of_path(path: tuple[Any, ...], said: Mapping[tuple[Any, ...], bool]) -> bool:
    """Finds what is said of a parameter, or of a part of the tree that it is in."""
    for end in range(len(path), -1, -1):
        if path[:end] in said:
            return said[path[:end]]
    raise ValueError(f"the roles (or the mask) say nothing of the parameter {_name(path)}")


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def needed(params: Any, what_for: str) -> Any:
    """Returns the parameters, which an optional argument of `update` may have left out.

    Raises:
      ValueError: it has.
    """
    if params is None:
        raise ValueError(f"{what_for} needs the parameters: update(gradient, state, params)")
    return params
