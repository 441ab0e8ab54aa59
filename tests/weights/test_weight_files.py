"""Files of weights: each form gives its arrays bit by bit, and what is wrong with one is a line."""

import json
import os
import pickle
import struct
import subprocess
import sys

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save, save_file
from torch_resnet import torch

from lbsgd.checkpoint import store
from lbsgd.checkpoint.manifest import make_manifest
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import any_path
from lbsgd.weights.files import open_weights

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "conv1.weight": RANDOM.normal(size=(4, 3, 2, 2)).astype(np.float32),
    "bn1.bias": RANDOM.normal(size=3),
    "bn1.weight": RANDOM.normal(size=5).astype(np.float16),
    "fc.weight": RANDOM.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
    "bn1.num_batches_tracked": np.array(3),
}


def tensors(arrays):
    """numpy's bfloat16 is not PyTorch's: by way of float32, which holds it exactly."""
    return {
        name: torch.tensor(x.astype(np.float32)).bfloat16()
        if x.dtype == ml_dtypes.bfloat16
        else torch.tensor(x)
        for name, x in arrays.items()
    }


def nested(arrays):
    tree = {}
    for name, x in arrays.items():
        layer, leaf = name.split(".")
        tree.setdefault(layer, {})[leaf] = x
    return tree


def prefixed(prefix):
    return {prefix + name: x for name, x in tensors(ARRAYS).items()}


WRITERS = {
    "safetensors": lambda path: save_file(ARRAYS, path),
    "pytorch": lambda path: torch.save(tensors(ARRAYS), path),
    "pytorch of old": lambda path: torch.save(
        tensors(ARRAYS), path, _use_new_zipfile_serialization=False
    ),
    "wrapped": lambda path: torch.save({"epoch": 3, "state_dict": tensors(ARRAYS)}, path),
    "wrapped twice": lambda path: torch.save({"model": {"state_dict": tensors(ARRAYS)}}, path),
    "of DataParallel": lambda path: torch.save({"model": prefixed("module.")}, path),
    "compiled": lambda path: torch.save(prefixed("module._orig_mod."), path),
    "msgpack": lambda path: path.write_bytes(serialization.msgpack_serialize(nested(ARRAYS))),
}


@pytest.mark.parametrize("form", WRITERS)
def test_arrays_come_back_bit_by_bit_from_each_form(form, tmp_path):
    """The name of the file says nothing."""
    path = tmp_path / "weights.bin"
    WRITERS[form](path)
    with open_weights(str(path)) as stored:
        assert len(stored.entries) == len(ARRAYS)
        for name, expected in ARRAYS.items():
            there = name.replace(".", "/") if form == "msgpack" else name
            assert stored.entries[there] == (expected.shape, expected.dtype.name)
            found = stored.read(there)
            if found.dtype != expected.dtype:  # PyTorch's bfloat16
                assert (expected.dtype.name, found.dtype.name) == ("bfloat16", "float32")
                expected = expected.astype(np.float32)
            assert found.tobytes() == expected.tobytes()


def test_a_prefix_that_only_some_names_have_is_a_part_of_them(tmp_path):
    """Takes the name from a network that calls a layer so."""
    names = {"module.conv.weight", "fc.weight"}
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "a")
    with open_weights(str(tmp_path / "a")) as stored:
        assert stored.entries.keys() == names


# --- what is wrong -------------------------------------------------------------------------------


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def safetensors_of(header, data=b"", size=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(start, end, shape=(1,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(one(0, 4)).encode(),) * 2)
HOSTILE_SAFETENSORS = {
    "header longer than the file": safetensors_of(b"{}", size=1000),
    "header of petabytes": safetensors_of(b"{}", size=2**60),
    "header that is no JSON": safetensors_of(b"{no JSON"),
    "header of other JSON": safetensors_of({"a": [1, 2]}),
    "offsets that overlap": safetensors_of({"a": one(0, 4), "b": one(0, 4)}, bytes(4)),
    "offsets past the end": safetensors_of({"a": one(0, 400, (100,))}, bytes(4)),
    "offsets that leave a hole": safetensors_of({"a": one(4, 8)}, bytes(8)),
    "a shape of petabytes": safetensors_of({"a": one(0, 4, (2**31, 2**31))}, bytes(4)),
    "a shape past all numbers": safetensors_of({"a": one(0, 4, (2**62, 2**62))}, bytes(4)),
    "a name twice": safetensors_of(TWICE, bytes(4)),
}


PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)


def truncated(form, path):
    WRITERS[form](path)
    path.write_bytes(path.read_bytes()[:-100])


def archive(path):
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def msgpack_of(dtype: bytes, shape, data: bytes):
    array = msgpack.packb((shape, dtype, data))
    return msgpack.packb({"params": msgpack.ExtType(1, array)})


HOSTILE = {
    **{
        name: lambda path, data=data: path.write_bytes(data)
        for name, data in HOSTILE_SAFETENSORS.items()
    },
    **{f"truncated {form}": lambda path, form=form: truncated(form, path) for form in WRITERS},
    "empty": lambda path: path.touch(),
    "one byte": lambda path: path.write_bytes(b"\x80"),
    "text": lambda path: path.write_text("<html>404: not found</html>"),
    "picture": lambda path: path.write_bytes(PNG),
    "zip of other things": archive,
    "FIFO": lambda path: os.mkfifo(path),
    "directory": lambda path: path.mkdir(),
    "nothing": lambda path: None,
    "no tensors": lambda path: torch.save({"state_dict": {"lr": 0.1}, "epoch": 3}, path),
    "msgpack of objects": lambda path: path.write_bytes(msgpack_of(b"O", (1,), bytes(8))),
    "msgpack of too few bytes": lambda path: path.write_bytes(
        msgpack_of(b"float32", (2**40,), bytes(8))
    ),
    "msgpack of one name twice": lambda path: path.write_bytes(
        serialization.msgpack_serialize({"a": {"b": np.ones(1)}, "a/b": np.ones(1)})
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_ends_in_one_line(what, tmp_path):
    path = tmp_path / ("weights" + "_of_a_long_name" * 5)
    HOSTILE[what](path)
    with pytest.raises(ConfigError) as raised, open_weights(str(path)):
        pass
    line = str(raised.value)
    assert "\n" not in line
    assert str(path) in line
    assert len(line) < 500


def test_a_picture_is_not_taken_for_damaged_weights(tmp_path):
    """Its first byte is that of a map of msgpack."""
    (tmp_path / "a.png").write_bytes(PNG)
    with (
        pytest.raises(ConfigError, match="is no file of weights"),
        open_weights(f"{tmp_path}/a.png"),
    ):
        pass


@pytest.mark.parametrize("names", [1, 15, 16, 70_000])
def test_a_tree_of_any_size_is_known_by_its_first_bytes(names, tmp_path):
    """msgpack writes the number of names in four bits, 16 or 32."""
    (tmp_path / "a").write_bytes(msgpack.packb({f"a{i}": i for i in range(names)}))
    with open_weights(str(tmp_path / "a")) as stored:
        assert len(stored.entries) == names


def test_the_nearest_name_is_told_where_there_is_no_file(tmp_path):
    save_file(ARRAYS, tmp_path / "pretrained.safetensors")
    for name, near in (("pretraned.safetensors", "pretrained.safetensors"), ("runs", None)):
        with pytest.raises(ConfigError, match="there is no") as raised:
            with open_weights(str(tmp_path / name)):
                pass
        assert ("the nearest that is there is" in str(raised.value)) == bool(near)
        assert not near or f"{tmp_path / near}'" in str(raised.value)


PLANTED = {
    "in a state dict": lambda payload, path: torch.save(
        {"state_dict": tensors(ARRAYS), "other": payload}, path
    ),
    "in one of old": lambda payload, path: torch.save(
        {**tensors(ARRAYS), "other": payload}, path, _use_new_zipfile_serialization=False
    ),
    "in a bare pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload)),
}


@pytest.mark.parametrize("where", PLANTED)
def test_a_planted_payload_is_not_executed(where, tmp_path):
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    PLANTED[where](Payload(made), path)
    with pytest.raises(ConfigError, match="without executing"), open_weights(str(path)):
        pass
    assert not made.exists()
    # It would have been, were it unpickled.
    data = pickle.dumps(Payload(made))
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({data!r})"], check=True)
    assert made.exists()


def test_without_pytorch_a_line_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    WRITERS["pytorch"](path)
    monkeypatch.setattr("lbsgd.weights.pytorch.importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match="pip install torch, or convert"),
        open_weights(str(path)),
    ):
        pass


def test_a_run_gives_its_weights_or_their_averages(tmp_path):
    """And the names of its classes; none of the optimizer's state."""
    names = ("params/fc/kernel", "batch_stats/norm/mean")
    arrays = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
    averages = {f"ema/{name}": x + 10 for name, x in arrays.items()}
    whole = {**arrays, **averages, "opt_state/params/fc/kernel": np.ones(2, np.float32)}
    manifest = make_manifest(7, {}, whole, {"classes": ["cat", "dog"]})
    store.write(tmp_path / "7", manifest, whole)
    for averaged in (False, True):
        with open_weights(str(tmp_path / "7"), averaged=averaged) as stored:
            assert stored.entries.keys() == arrays.keys()
            assert stored.about.classes == ("cat", "dog")
            for name, x in arrays.items():
                np.testing.assert_array_equal(stored.read(name), x + 10 * averaged)


def test_a_file_in_a_bucket_is_read():
    path = any_path("memory://weights/resnet.safetensors")
    path.write_bytes(save(ARRAYS))
    with open_weights(str(path)) as stored:
        assert stored.read("bn1.bias").tobytes() == ARRAYS["bn1.bias"].tobytes()
