"""Checkpoints hold the state that was saved, bit by bit."""

import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_folder import IDENTITY, Opened, assert_same, filled, on_disk, restored, state
from jax.sharding import NamedSharding, PartitionSpec

import lbsgd
from lbsgd.checkpoint import manifest, store
from lbsgd.workers.placement import place


def test_a_state_comes_back_in_its_structure(tmp_path):
    with Opened(tmp_path / "deep" / "er") as opened:
        assert opened.checkpoints.restore(state()) is None
        assert opened.checkpoints.newest is None
        opened.checkpoints.save(7, state(7))
        opened.checkpoints.wait()
        assert opened.checkpoints.newest == 7
    assert restored(tmp_path / "deep" / "er") == (7, [])


BITS = {
    "float32": np.array([0x7FC00001, 0x80000000, 0xFFFFFFFF, 1], np.uint32).view(np.float32),
    "float64": np.array([0x7FF8000000000123, 1 << 63, 1], np.uint64).view(np.float64),
    "bfloat16": np.array([0x7FC1, 0x8000, 0xFFFF, 1], np.uint16).view(ml_dtypes.bfloat16),
    "float16": np.array([0x7E01, 0x8000, 1], np.uint16).view(np.float16),
    "float8": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
    "int64": np.array([-(2**63), 2**63 - 1]),
    "uint32": np.array(2**32 - 1, np.uint32),
    "bool": np.array([[True], [False]]),
    "zeros": np.zeros((50, 50)),
    "empty": np.zeros((3, 0), np.float16),
}


def test_bits_survive(tmp_path):
    """NaN payloads, -0.0, denormals, and 64 bits though JAX has only 32 here."""
    assert not jax.config.jax_enable_x64
    path = tmp_path / "3"
    store.write(path, manifest.make_manifest(3, IDENTITY, BITS), BITS)
    found = store.read_arrays(path, store.read_manifest(path))
    for name, wanted in BITS.items():
        assert (found[name].dtype, found[name].shape) == (wanted.dtype, wanted.shape)
        assert found[name].tobytes() == wanted.tobytes()


def test_64_bits_and_signed_zeros_survive_a_save(tmp_path):
    like = {"x": np.array([-0.0, 1 + 2**-50]), "n": np.array(2**40)}
    with Opened(tmp_path) as opened:
        opened.checkpoints.save(1, like)
        opened.checkpoints.wait()
        assert_same(opened.checkpoints.restore(like)[1], like)


def test_checksum_is_of_name_dtype_shape_and_values():
    """Computed by hand; the same however the array lies in memory."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    head = b'["a/b", "float32", [2, 3]]'
    wanted = hashlib.sha256(head + array.tobytes()).hexdigest()
    assert manifest.array_checksum("a/b", array) == wanted
    assert manifest.array_checksum("a/b", np.asfortranarray(array)) == wanted
    assert manifest.array_checksum("a/b", np.repeat(array, 2, axis=1)[:, ::2]) == wanted
    others = [
        manifest.array_checksum("a/c", array),
        manifest.array_checksum("a/b", array.reshape(3, 2)),
        manifest.array_checksum("a/b", array.view(np.int32)),
        manifest.array_checksum("a/b", array + np.float32(1)),
    ]
    assert len({wanted, *others}) == 5


def test_orbax_reads_it(tmp_path):
    """By its own manager, without us; and the manifest is plain JSON."""
    filled(tmp_path, [4])
    manager = ocp.CheckpointManager(tmp_path)
    assert manager.all_steps() == [4]
    items = ocp.args.Composite(state=ocp.args.PyTreeRestore(), manifest=ocp.args.JsonRestore())
    found = manager.restore(4, args=items)
    manager.close()
    np.testing.assert_array_equal(found.state["params/head/kernel"], np.full((40, 30), 4.0))
    text = json.loads((tmp_path / "4" / "manifest" / "metadata").read_text())
    assert text == found.manifest
    assert (text["update"], text["identity"]) == (4, IDENTITY)
    assert text["version"] == lbsgd.__version__
    assert text["arrays"]["opt/count"]["shape"] == []
    assert text["arrays"]["params/scale"]["dtype"] == "bfloat16"
    assert text["arrays"]["params/head/bias"]["shape"] == [0, 3]


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    """Each save is under way when the step overwrites the buffers it was given."""
    mesh = place(8, 1, devices=4).mesh
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"a": jnp.zeros((300, 300)), "b": jnp.zeros((), jnp.int32)}
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    with Opened(tmp_path, keep=100) as opened:
        for update in range(20):
            opened.checkpoints.save(update, state)
            for _ in range(5):
                state = step(state)
    for update in range(20):
        path = tmp_path / str(update)
        found = store.read_arrays(path, store.read_manifest(path))
        np.testing.assert_array_equal(found["a"], np.full((300, 300), 5.0 * update))
        assert found["b"] == 5 * update


def test_sharded_arrays_are_refused(tmp_path):
    mesh = place(8, 1, devices=4).mesh
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    with Opened(tmp_path) as opened:
        with pytest.raises(ValueError, match="a checkpoint holds replicated arrays only"):
            opened.checkpoints.save(1, {"x": jax.device_put(jnp.zeros(8), sharding)})


def test_leaves_of_one_name_are_refused(tmp_path):
    with Opened(tmp_path) as opened:
        with pytest.raises(ValueError, match="the leaves have no names of their own"):
            opened.checkpoints.save(1, {"a": {"b": jnp.zeros(1)}, "a/b": jnp.zeros(1)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, bad):
    filled(tmp_path, [1])
    broken = {**state(2), "params": {"x": jnp.array([1, bad], jnp.bfloat16), "a": jnp.zeros(2)}}
    with Opened(tmp_path) as opened:
        opened.checkpoints.restore(state())
        opened.checkpoints.save(2, broken)
    assert opened.said == [
        "checkpoint 2 could not be written (params/x is not finite); training goes on, the newest "
        "good one is 1"
    ]
    assert on_disk(tmp_path) == ["1"]
