"""Lays out a state: on devices, where parts of it are shared out, and whole, as it is stored.

What is stored is of no placement: the minibatch of running mixup is by worker, and statistics of
curvature are by layer.
"""

from typing import Any, no_type_check

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from lbsgd.step import running_mixup
from lbsgd.step.second_order import SecondOrder
from lbsgd.step.train_step import TrainState
from lbsgd.workers.placement import Placement


def on_devices(
    state: TrainState, second_order: SecondOrder | None, placement: Placement
) -> TrainState:
    """Lays out a stored state as the devices of a placement hold it; pure, of any arrays."""
    curvature = state.curvature
    if second_order and curvature is not None:
        curvature = second_order.precondition.from_stored(curvature)
    laid_out: TrainState = state.replace(
        mixed=running_mixup.by_slot(state.mixed, placement), curvature=curvature
    )
    return laid_out


def as_stored(
    state: TrainState, second_order: SecondOrder | None, placement: Placement
) -> TrainState:
    """Gives a state of devices the form that is stored; pure, of any arrays."""
    curvature = state.curvature
    if second_order and curvature is not None:
        curvature = second_order.precondition.stored(curvature)
    stored: TrainState = state.replace(
        mixed=running_mixup.by_worker(state.mixed, placement), curvature=curvature
    )
    return stored


@no_type_check
def shardings(replicated: Sharding, by_slot: Sharding, owned: Any = None) -> TrainState:
    """Says where the parts of a state on devices lie: a prefix of its tree.

    Args:
      replicated: of what all devices have.
      by_slot: of what lies as a batch does.
      owned: of statistics of curvature, a tree like them; None without any.
    """
    parts = dict.fromkeys(TrainState.__dataclass_fields__, replicated)
    return TrainState(**{**parts, "mixed": by_slot, "curvature": owned or replicated})


def shardings_on(
    mesh: Mesh | AbstractMesh, second_order: SecondOrder | None, placement: Placement
) -> TrainState:
    """Says where the parts of the state of a run lie: a prefix of its tree."""
    owned = second_order and second_order.precondition.specs()
    return shardings(
        *jax.tree.map(
            lambda spec: NamedSharding(mesh, spec), (PartitionSpec(), placement.batch_spec, owned)
        )
    )


def shapes(
    stored: TrainState, second_order: SecondOrder | None, placement: Placement
) -> TrainState:
    """Gives shapes and types of a state on devices, of those of what is stored."""
    return jax.eval_shape(lambda state: on_devices(state, second_order, placement), stored)


def sharded(shapes: Any, shardings: Any) -> Any:
    """Gives the shapes of a tree a sharding, or those of a prefix of the tree."""

    def give(one: NamedSharding, part: Any) -> Any:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), part)

    return jax.tree.map(give, shardings, shapes)
