"""Selects parameters by role or by pattern, and parts those that are trained from frozen ones.

A selection is a word of a role ("norm scale"), or a pattern of a parameter's path: a glob for each
of its first parts, with "/" between. So "stage1_*" is all that is in the blocks of the first stage,
"*/conv1" the first convolution of every block, and "classifier/bias" one array.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from lbsgd.models.roles import Role
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr


def selected(key: str, pattern: str, roles: PyTree[Role]) -> PyTree[bool]:
    """Tells which parameters a role's word or a pattern selects.

    Args:
      key: of the config, that has it.
      roles: of the parameters.

    Raises:
      ConfigError: there are none; it names what is nearest.
    """
    found = jax.tree_util.tree_map_with_path(
        lambda path, role: _matches(pattern, _parts(path), role), roles
    )
    if not any(jax.tree.leaves(found)):
        near = difflib.get_close_matches(pattern, _selections(roles), 1, 0.0)[0]
        raise ConfigError(
            f"{key}: {short_repr(pattern)} matches no parameter, neither as a role nor as a "
            f"pattern of a path; the nearest that does is {near!r}"
        )
    return found


def trained_by(freeze: Iterable[str], roles: PyTree[Role]) -> PyTree[bool]:
    """Tells which parameters are trained where `optimizer.freeze` names the others.

    Raises:
      ConfigError: a name matches none, or they are all frozen.
    """
    trained = jax.tree.map(lambda _: True, roles)
    for pattern in freeze:
        frozen = selected("optimizer.freeze", pattern, roles)
        trained = jax.tree.map(lambda t, f: t and not f, trained, frozen)
    if not any(jax.tree.leaves(trained)):
        raise ConfigError(
            "optimizer.freeze leaves no parameter to be trained; take one of its patterns out"
        )
    return trained


def multipliers_by(
    patterns: Mapping[str, float], roles: PyTree[Role], trained: PyTree[bool]
) -> PyTree[float]:
    """Tells the multiplier of each parameter's rate, as `optimizer.rate_multipliers` has it.

    One that several patterns match has the product of theirs.

    Raises:
      ConfigError: a pattern matches no parameter, or frozen ones alone.
    """
    key = "optimizer.rate_multipliers"
    found = jax.tree.map(lambda _: 1.0, roles)
    for pattern, number in patterns.items():
        those = selected(key, pattern, roles)
        both = jax.tree.map(lambda s, t: s and t, those, trained)
        if not any(jax.tree.leaves(both)):
            raise ConfigError(
                f"{key}: all that {short_repr(pattern)} matches is frozen, and has no rate; take "
                "it out, or the pattern of optimizer.freeze"
            )
        found = jax.tree.map(lambda x, s, n=number: x * n if s else x, found, those)
    return found


def trained_part(tree: Any, trained: PyTree[bool] | None) -> Any:
    """Takes what belongs to trained parameters out of a tree like them, with None for the others.

    Of None JAX's functions of trees know that nothing is there, and so do optax's transforms.

    Args:
      trained: like the parameters, True where they are trained; None for all of them.
    """
    if trained is None:
        return tree
    return jax.tree.map(lambda x, is_trained: x if is_trained else None, tree, trained)


def with_frozen(part: Any, tree: Any) -> Any:
    """Puts what belongs to trained parameters back into a tree like all of them."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, part, tree, is_leaf=lambda x: x is None
    )


def _matches(pattern: str, parts: tuple[str, ...], role: Role) -> bool:
    if pattern == role:
        return True
    globs = pattern.split("/")
    # Part by part, for "*" is not to reach over a "/": "*/bias" would be all biases.
    return len(globs) <= len(parts) and all(map(fnmatch.fnmatchcase, parts, globs))


def _parts(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _selections(roles: PyTree[Role]) -> list[str]:
    """Lists what would select a parameter: the roles that there are, and paths and their starts."""
    paths = [_parts(path) for path, _ in jax.tree_util.tree_leaves_with_path(roles)]
    starts = ("/".join(path[:end]) for path in paths for end in range(1, len(path) + 1))
    return list(dict.fromkeys([*map(str, jax.tree.leaves(roles)), *starts]))
