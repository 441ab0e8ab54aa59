"""Takes the state from the devices of all processes to a checkpoint, and puts it back there.

What devices own is stored whole, by layer, so that any number of them can go on with it.
"""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from lbsgd.run.plan import Plan
from lbsgd.run.program import Program
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.run.updates import Updates
from lbsgd.step.train_step import TrainState
from lbsgd.system.errors import ConfigError
from lbsgd.system.processes import from_process_0, gathered, in_process_0, onto_devices


def restore_state(program: Program, record: Record | NoRecord) -> TrainState | None:
    """Puts the state that process 0 has found on all devices; None if there is none."""
    like = stored_shapes(program.plan)
    # A broadcast wants arrays of the same shapes from all, even from those who have none to send.
    nothing = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
    found: tuple[int, TrainState] | None = in_process_0(lambda: record.restore(like))
    update, state = found or (-1, nothing)
    if from_process_0(np.array(update)) < 0:
        return None
    second_order = program.plan.second_order
    if state.curvature is not None and second_order:
        state = state.replace(curvature=second_order.precondition.from_stored(state.curvature))
    return onto_devices(state, program.abstract_state())


def state_to_store(program: Program, state: TrainState) -> TrainState:
    """Gives the state the form of checkpoints: all of it where process 0 has it.

    What devices own is gathered from those of all processes, which have to call this together.
    """
    if state.curvature is None:
        return state
    # One by one: a device need not have room for all of it.
    whole = jax.tree.map(lambda x: gathered(x, program.plan.placement.replicated), state.curvature)
    return _stored(program.plan, state.replace(curvature=whole))


def state_of_process(program: Program, updates: Updates) -> TrainState:
    """Gives the state the form of checkpoints, in a process that the others may not wait for.

    Raises:
      ConfigError: a part of it is on devices of other processes.
    """
    if program.plan.is_spread:
        raise ConfigError("of this update nothing is saved, for other processes have parts of it")
    return state_to_store(program, updates.state)


def save_best(
    program: Program,
    record: Record | NoRecord,
    done: int,
    state: TrainState,
    values: Mapping[str, float],
) -> None:
    """Saves a state that was evaluated, if that is the best so far and such are to be kept.

    Raises:
      ConfigError: as `Record.save`.
    """
    best = record.is_best(values)
    # All have to bring their parts; process 0 alone knows of earlier evaluations.
    if program.plan.is_spread:
        best = bool(from_process_0(np.array(best)))
    if best:
        record.save(done, state_to_store(program, state), last=False, best=True)


def stored_shapes(plan: Plan) -> TrainState:
    """Gives shapes and types of what `state_to_store` makes."""
    shapes: TrainState = jax.eval_shape(functools.partial(_stored, plan), plan.state_shapes)
    return shapes


def _stored(plan: Plan, state: TrainState) -> TrainState:
    if state.curvature is None or plan.second_order is None:
        return state
    stored: TrainState = state.replace(
        curvature=plan.second_order.precondition.stored(state.curvature)
    )
    return stored
