"""A folder of checkpoints, and what `Checkpoints` says of it."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lbsgd.checkpoint.saving import Checkpoints

IDENTITY = {"seed": 0, "model": {"name": "r", "width": 0.25}, "data": "a1b2"}


class Opened:
    """Checkpoints in a folder, and what they said."""

    def __init__(self, folder, keep=2, identity=IDENTITY, **options):
        self.said = []
        self.checkpoints = Checkpoints(folder, keep, identity, say=self.said.append, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.checkpoints.close()


class Moments(NamedTuple):
    count: object
    trace: object


def state(value: int = 1):
    """With leaves of each kind: scalar, empty, half precision, large enough for a file."""
    return {
        "params": {
            "head": {"kernel": jnp.full((40, 30), value, jnp.float32), "bias": jnp.zeros((0, 3))},
            "scale": jnp.full((5,), value, jnp.bfloat16),
        },
        "opt": Moments(jnp.array(value, jnp.int32), (jnp.arange(7.0) * value,)),
    }


def filled(folder, updates, keep=10, **options):
    """Makes checkpoints of `state(update)`."""
    with Opened(folder, keep, **options) as opened:
        for update in updates:
            opened.checkpoints.save(update, state(update))
    assert opened.said == []


def assert_same(found, wanted):
    """Structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), map(np.asarray, jax.tree.leaves(wanted))):
        assert isinstance(one, np.ndarray)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def restored(folder, **options):
    """(update, said) of a restore; checks that the state is that of the update."""
    with Opened(folder, **options) as opened:
        update, found = opened.checkpoints.restore(state())
        assert opened.checkpoints.newest == update
    assert_same(found, state(update))
    return update, opened.said


def on_disk(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path: pathlib.Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def damage(checkpoint: pathlib.Path) -> None:
    flip(checkpoint / "manifest" / "metadata", 40)
