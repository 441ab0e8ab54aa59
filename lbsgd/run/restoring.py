"""Puts the state of the newest good checkpoint on the devices of all processes."""

import jax
import numpy as np

from lbsgd.run.program import Program
from lbsgd.run.record.record import NoRecord, Record
from lbsgd.step.train_step import TrainState
from lbsgd.system.processes import from_process_0, in_process_0, onto_devices


def restore_state(program: Program, record: Record | NoRecord) -> TrainState | None:
    """Puts the state that process 0 has found on all devices; None if there is none."""
    like = program.abstract_state()
    # A broadcast wants arrays of the same shapes from all, even from those who have none to send.
    nothing = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
    found: tuple[int, TrainState] | None = in_process_0(lambda: record.restore(like))
    update, state = found or (-1, nothing)
    if from_process_0(np.array(update)) < 0:
        return None
    return program.by_slot(onto_devices(state, like))
