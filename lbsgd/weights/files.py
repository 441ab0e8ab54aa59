"""Reads arrays by name from the files that weights come in, and from other runs.

What a file is, its first bytes tell, not its name. A file may be damaged or hostile: it is read by
what executes nothing, and whatever is wrong with it ends in one line.
"""

import collections
import contextlib
import json
import pathlib
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
from flax import serialization
from flax.traverse_util import flatten_dict

from lbsgd.system.bucket import BucketPath
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, nearest_path, user_path
from lbsgd.system.text import one_line, printable, short_repr
from lbsgd.weights import pytorch, runs
from lbsgd.weights.stored import About, Entry, Stored, UnreadableError, about_network

# By numpy's names: the floats, and the type of counters; of others no array is taken.
_NUMPY_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
}
_KNOWN = "safetensors, a state dict of PyTorch, Flax's msgpack of params and batch_stats, or a run"


@contextlib.contextmanager
def open_weights(name: str, *, averaged: bool = False) -> Iterator[Stored]:
    """Opens a file, or a run, to read the arrays of a network from it.

    Args:
      name: a path as users write it, on the disk or in a bucket.
      averaged: whether to take the averaged weights of a run.

    Raises:
      ConfigError: nothing is there, it cannot be read, or it has no averaged weights.
    """
    path = user_path(name)
    with _in_a_line(name):
        if path.is_dir():
            yield runs.open_run(path, averaged)
            return
        if averaged:
            raise UnreadableError("is a file, and init_ema=True is of other runs")
        with _on_disk(path) as file:
            yield _open_file(file)


def is_missing(name: str) -> bool:
    """Tells whether nothing is there.

    Raises:
      ConfigError: that cannot be known.
    """
    with _in_a_line(name):
        return not user_path(name).exists()


def nearest(name: str) -> str:
    """Names what lies where a file or a run does not, and is called nearly so; "" for nothing."""
    path = user_path(name)
    near = None if isinstance(path, BucketPath) else nearest_path(path)
    return f"; the nearest that is there is {printable(str(near))!r}" if near else ""


@contextlib.contextmanager
def _in_a_line(name: str) -> Iterator[None]:
    """Turns whatever libraries raise for damage into one line."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"init_from: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"init_from: there is no {printable(name)!r}{nearest(name)}") from error
    except OSError as error:
        reason = one_line(error.strerror or str(error))
        raise ConfigError(f"init_from: {printable(name)!r} cannot be read ({reason})") from error
    except UnreadableError as error:
        raise ConfigError(f"init_from: {printable(name)!r} {one_line(str(error))}") from error


@contextlib.contextmanager
def _on_disk(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yields a plain file on the disk: its own, or a copy of what is in a bucket."""
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory(prefix="lbsgd-") as folder:
            copy = pathlib.Path(folder, "weights")
            path.download(copy)
            yield copy
        return
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableError("is neither a file nor a folder")
    yield path


def _open_file(path: pathlib.Path) -> Stored:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise UnreadableError("is empty")
    try:
        if start[8:] == b"{":
            return _safetensors(path)
        if pytorch.begins(start):
            return pytorch.open_state_dict(path)
        if _begins_a_map_of_names(start):
            return _msgpack(path)
    except (UnreadableError, ConfigError, OSError):
        raise
    except Exception as error:  # of any kind, from a library that reads what is damaged
        raise UnreadableError(f"is damaged ({type(error).__name__}: {error})") from error
    raise UnreadableError(f"is no file of weights that is known: {_KNOWN}")


# --- safetensors ---------------------------------------------------------------------------------


def _safetensors(path: pathlib.Path) -> Stored:
    """Opens a file of safetensors, whose library checks its header against its size."""
    try:
        file: Any = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise UnreadableError(f"is damaged, or no whole safetensors file ({error})") from error
    _check_names(path)
    entries = {}
    names: list[str] = file.keys()  # it is no mapping
    for name in names:
        part = file.get_slice(name)
        dtype = part.get_dtype()
        entries[name] = Entry(tuple(part.get_shape()), _NUMPY_TYPES.get(dtype, dtype))
    return Stored("safetensors", entries, file.get_tensor, _about(file.metadata() or {}))


def _about(metadata: Mapping[str, str]) -> About:
    """Takes from the metadata what `lbsgd export` puts there as JSON."""
    values = {}
    for name in ("classes", "preprocessing", "model"):
        with contextlib.suppress(ValueError, RecursionError):
            values[name] = json.loads(metadata.get(name, ""))
    return about_network(values, values.get("model"))


def _check_names(path: pathlib.Path) -> None:
    """Checks that a header that the library has accepted names no array twice."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = file.read(size)
    json.loads(header, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    twice = [name for name, count in collections.Counter(k for k, _ in pairs).items() if count > 1]
    if twice:
        raise UnreadableError(f"names {short_repr(twice[0])} twice")
    return dict(pairs)


# --- Flax's msgpack ------------------------------------------------------------------------------


def _begins_a_map_of_names(start: bytes) -> bool:
    """Tells whether a file begins as a map whose first key is text; a PNG begins as another."""
    size = {0xDE: 3, 0xDF: 5}.get(start[0], 1 if 0x81 <= start[0] <= 0x8F else 0)
    key = start[size : size + 1]
    return size > 0 and (b"\xa0" <= key <= b"\xbf" or key in (b"\xd9", b"\xda", b"\xdb"))


def _msgpack(path: pathlib.Path) -> Stored:
    """Opens a tree that Flax wrote, which is read whole."""
    tree = _restored(path.read_bytes())
    flat: dict[str, Any] = {}
    for keys, leaf in flatten_dict(tree).items():
        name = "/".join(map(str, keys))
        if name in flat:
            raise UnreadableError(f"names {short_repr(name)} twice")
        flat[name] = leaf
    return Stored(
        "msgpack of Flax", {n: _entry(leaf) for n, leaf in flat.items()}, flat.__getitem__
    )


def _restored(data: bytes) -> Mapping[str, Any]:
    tree = serialization.msgpack_restore(data)
    if not isinstance(tree, dict):
        raise UnreadableError("is no tree of arrays")
    return tree


def _entry(leaf: Any) -> Entry:
    if isinstance(leaf, np.ndarray):
        return Entry(leaf.shape, leaf.dtype.name)
    return Entry((), type(leaf).__name__)
