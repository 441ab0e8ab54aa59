"""Checkpoints 1 and 2 of a run, to be damaged: a restore finds one of them, bit by bit."""

import jax.numpy as jnp
import numpy as np

from lbsgd.checkpoint.saving import Checkpoints

IDENTITY = {"seed": 0}


def state(update):
    """Leaves that are small enough for Orbax's index, and one that gets a file."""
    values = np.random.default_rng(update).standard_normal((3, 1000), np.float32)
    return {
        "kernel": jnp.asarray(values),
        "scale": jnp.full((5,), update, jnp.bfloat16),
        "count": jnp.array(update, jnp.int32),
        "empty": jnp.zeros((0, 2)),
    }


def restored(folder):
    """(update, said) of a restore, whose state is bit by bit that of the update."""
    said = []
    checkpoints = Checkpoints(folder, 5, IDENTITY, say=said.append)
    update, found = checkpoints.restore(state(0))
    checkpoints.close()
    for name, wanted in state(update).items():
        wanted = np.asarray(wanted)
        assert (found[name].dtype, found[name].shape) == (wanted.dtype, wanted.shape)
        assert found[name].tobytes() == wanted.tobytes()
    return update, said


def same_or_previous(folder):
    """The update that was restored; of the previous one, with one reason on one line."""
    update, said = restored(folder)
    if update == 2:
        assert said == []
    else:
        assert update == 1
        [line] = said
        assert line.startswith("checkpoint 2 is passed over: ")
        assert line.isprintable()
        assert 40 < len(line) < 350
    return update
