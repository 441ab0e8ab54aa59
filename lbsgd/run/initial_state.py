"""The state that a run starts with: drawn by its seed, or of weights that are given."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import PyTree

from lbsgd.models.selection import trained_part
from lbsgd.optim.rule import Rule
from lbsgd.step.running_mixup import Mixed
from lbsgd.step.second_order import SecondOrder
from lbsgd.step.train_step import Averaged, TrainState
from lbsgd.weights.initial import take


def bind_state_of(
    config: ml_collections.ConfigDict,
    rule: Rule,
    trained: PyTree[bool],
    second_order: SecondOrder | None,
    mixed: Mixed | None,
) -> Callable[[Any, Any], TrainState]:
    """Binds what makes the state that a run starts with of its parameters and statistics.

    Args:
      mixed: shapes of the minibatch that running mixup keeps, by worker.
    """
    return functools.partial(
        _state_of,
        optimizer=rule.transform,
        trained=trained,
        averaged=bool(config.ema.decay),
        second_order=second_order,
        mixed=mixed,
    )


def initial_state(
    initialize: Callable[..., tuple[Any, Any]],
    state_of: Callable[[Any, Any], TrainState],
    seed: Any = None,
    given: Mapping[str, jax.Array] | None = None,
) -> TrainState:
    """Makes the state of what a seed draws, or of arrays that take its place.

    Args:
      initialize: that of a `Network`.
      state_of: (params, batch_stats) -> state.
      seed: None for that of the config.
      given: arrays by the names of `weights.initial`.
    """
    params, stats = initialize() if seed is None else initialize(seed)
    if given:
        variables = take({"params": params, "batch_stats": stats}, given)
        params, stats = variables["params"], variables["batch_stats"]
    return state_of(params, stats)


def _state_of(
    params: Any,
    stats: Any,
    *,
    optimizer: optax.GradientTransformationExtraArgs,
    trained: PyTree[bool],
    averaged: bool,
    second_order: SecondOrder | None,
    mixed: Mixed | None,
) -> TrainState:
    update_index, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    # Copies, for the step is given the memory of each array once.
    ema = Averaged(*jax.tree.map(jnp.copy, (params, stats))) if averaged else None
    opt_state = optimizer.init(trained_part(params, trained))
    curvature = None
    if second_order:
        curvature = second_order.precondition.init(jax.tree.leaves(params)[0].dtype)
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), mixed)
    return TrainState(update_index, params, stats, opt_state, skipped, ema, curvature, nothing)
