"""Takes the state from the devices of all processes to a checkpoint, and puts it back there.

What devices own is stored whole, by layer, so that any number of them can go on with it.
"""

from collections.abc import Mapping

import jax
import numpy as np

from lbsgd.run.layout import as_stored, on_devices, sharded
from lbsgd.run.program import Program
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.run.updates import Updates
from lbsgd.step.train_step import TrainState
from lbsgd.system.errors import ConfigError
from lbsgd.system.processes import from_process_0, gathered, in_process_0, onto_devices


def restore_state(program: Program, record: Record | NoRecord) -> TrainState | None:
    """Puts the state that process 0 has found on all devices; None if there is none."""
    like = program.abstract_state()
    # A broadcast wants arrays of the same shapes from all, even from those who have none to send.
    nothing = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
    found: tuple[int, TrainState] | None = in_process_0(lambda: record.restore(like))
    update, state = found or (-1, nothing)
    if from_process_0(np.array(update)) < 0:
        return None
    plan = program.plan
    # On the host, so that no device needs room for all of it.
    laid_out = on_devices(state, plan.second_order, plan.placement)
    with_shardings = sharded(plan.shapes_on_devices(plan.placement), program.state_shardings())
    return onto_devices(laid_out, with_shardings)


def state_to_store(program: Program, state: TrainState) -> TrainState:
    """Gives the state the form of checkpoints: all of it where process 0 has it.

    What is shared out is gathered from the devices of all processes, which have to call this
    together.
    """
    plan, shared_out = program.plan, (state.curvature, state.mixed)
    if not jax.tree.leaves(shared_out):
        return state
    replicated = plan.placement.replicated
    curvature, mixed = jax.tree.map(lambda x: gathered(x, replicated), shared_out)
    whole: TrainState = state.replace(curvature=curvature, mixed=mixed)
    return as_stored(whole, plan.second_order, plan.placement)


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
