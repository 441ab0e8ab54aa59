"""Checkpoints hold the state that was saved, whatever happens to its buffers after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lbsgd.checkpoint import Checkpoints
from lbsgd.errors import ConfigError
from lbsgd.workers import place


def like(state):
    sharding = NamedSharding(place(8, 1, devices=4).mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    """Each save is under way when the step overwrites the buffers it was given."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"a": jnp.zeros((500, 500)), "b": jnp.zeros((), jnp.int32)}
    checkpoints = Checkpoints(tmp_path, keep=100)
    for update in range(20):
        checkpoints.save(update, state)
        for _ in range(5):
            state = step(state)
    checkpoints.close()
    for update in range(20):
        found = Checkpoints(tmp_path, keep=100)
        restored = found._manager.restore(update)
        found.close()
        np.testing.assert_array_equal(restored["a"], np.full((500, 500), 5.0 * update))
        assert restored["b"] == 5 * update


def test_the_newest_few_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest is None
    for update in (1, 5, 9):
        checkpoints.save(update, {"x": jnp.full(3, update)})
    checkpoints.save(9, {"x": jnp.full(3, 0)})  # is there already
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=2)
    assert again.newest == 9
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "9"]
    restored = again.restore(like({"x": jnp.full(3, 0)}))
    again.close()
    np.testing.assert_array_equal(restored["x"], [9, 9, 9])
    assert len(restored["x"].sharding.device_set) == 4


def test_a_checkpoint_of_something_else_is_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"x": jnp.zeros(3)})
    with pytest.raises(ConfigError, match="cannot be restored"):
        checkpoints.restore(like({"y": jnp.zeros(4)}))
    checkpoints.close()
