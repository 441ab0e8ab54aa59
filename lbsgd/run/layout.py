"""Lays out a state: as the devices hold it, by slot in parts, and as it is stored, by worker."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from lbsgd.step import running_mixup
from lbsgd.step.train_step import TrainState
from lbsgd.workers.placement import Placement


def by_slot(state: TrainState, placement: Placement) -> TrainState:
    """Lays out a stored state as the devices of a placement hold it; pure."""
    laid_out: TrainState = state.replace(mixed=running_mixup.by_slot(state.mixed, placement))
    return laid_out


def stored(state: TrainState, placement: Placement) -> TrainState:
    """Gives a state of devices as it is stored, the same for every placement; all devices have it.

    The devices of one process only.
    """
    out = placement.replicated
    by_worker = jax.jit(running_mixup.by_worker, static_argnums=1, out_shardings=out)
    as_stored: TrainState = state.replace(mixed=by_worker(state.mixed, placement))
    return as_stored


def shapes_by_slot(shapes: TrainState, placement: Placement) -> TrainState:
    """Gives shapes and types of a state as the devices hold it, from those of a stored one."""
    return jax.eval_shape(lambda state: by_slot(state, placement), shapes)


def sharded(shapes: Any, sharding: Any) -> Any:
    """Gives the shapes of a tree a sharding, or those of a prefix of the tree."""

    def give(one: NamedSharding, part: Any) -> Any:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), part)

    return jax.tree.map(give, sharding, shapes)
