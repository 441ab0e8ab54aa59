"""The manifest of a checkpoint: update index, whose it is, for what, a checksum of each array.

A manifest that is read is not trusted: `from_json` checks it field by field.
"""

import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  # makes numpy know bfloat16 and the like by name
import numpy as np

import lbsgd

FORMAT = 2
# More differences than this do not help the reader.
SHOWN = 3


class DamagedError(ValueError):
    """A checkpoint cannot be used; the message says why."""


class ArrayEntry(NamedTuple):
    """Describes an array: the name of its dtype, its shape, and its `array_checksum`."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def nbytes(self) -> int:
        """The bytes of the array in memory."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Manifest(NamedTuple):
    """Describes a checkpoint.

    Attributes:
      update: the update index, how many updates were done.
      version: the version of lbsgd.
      written: the time, ISO 8601.
      identity: everything that determines the numbers of the run, as JSON.
      interface: what the network takes and gives, as JSON: preprocessing, classes.
      arrays: the arrays by name.
    """

    update: int
    version: str
    written: str
    identity: dict[str, Any]
    interface: dict[str, Any]
    arrays: dict[str, ArrayEntry]

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays in memory."""
        return sum(entry.nbytes for entry in self.arrays.values())


def named_leaves(tree: Any) -> dict[str, Any]:
    """Names the leaves of a tree by their paths, as in "params/head/bias".

    Raises:
      ValueError: two leaves have the same name.
    """
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    if len(set(names)) != len(names) or not all(names):
        raise ValueError(f"the leaves have no names of their own: {sorted(names)}")
    return dict(zip(names, [leaf for _, leaf in pairs]))


def array_checksum(name: str, array: np.ndarray) -> str:
    """Computes the SHA-256 of name, dtype, shape, and the values in row-major order."""
    head = json.dumps([name, array.dtype.name, array.shape])
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def make_manifest(
    update: int,
    identity: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    interface: Mapping[str, Any] | None = None,
) -> Manifest:
    """Makes the manifest of arrays that are about to be written."""
    entries = {
        name: ArrayEntry(x.dtype.name, x.shape, array_checksum(name, x))
        for name, x in arrays.items()
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    about = json_round_trip(identity), json_round_trip(interface or {})
    return Manifest(update, lbsgd.__version__, now, *about, entries)


def json_round_trip(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a value as it will be read back from JSON, for comparisons."""
    return json.loads(json.dumps(value))


def to_json(manifest: Manifest) -> dict[str, Any]:
    """Converts a manifest to JSON, with a digest of itself."""
    entries = {name: entry._asdict() for name, entry in manifest.arrays.items()}
    body = {"format": FORMAT, **manifest._asdict(), "arrays": entries}
    body = json_round_trip(body)
    return {**body, "sha256": _digest(body)}


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def from_json(value: Any) -> Manifest:
    """Parses a manifest from a JSON value that may be anything.

    Raises:
      DamagedError: it is not what `to_json` returns.
    """
    if not isinstance(value, dict):
        raise DamagedError("its manifest is not one")
    body = {key: part for key, part in value.items() if key != "sha256"}
    if value.get("sha256") != _digest(body):
        raise DamagedError("its manifest does not have the checksum that it names")
    if body.get("format") != FORMAT:
        raise DamagedError(f"its manifest has format {body.get('format')!r}, not {FORMAT}")
    kinds = {"update": int, "version": str, "written": str}
    kinds |= dict.fromkeys(("identity", "interface", "arrays"), dict)
    for key, kind in kinds.items():
        if type(body.get(key)) is not kind:
            raise DamagedError(f"its manifest has no {key}")
    arrays = {name: _entry(name, entry) for name, entry in body["arrays"].items()}
    return Manifest(**{key: body[key] for key in kinds} | {"arrays": arrays})


def _entry(name: str, value: Any) -> ArrayEntry:
    try:
        entry = ArrayEntry(str(value["dtype"]), tuple(value["shape"]), str(value["sha256"]))
        dtype = np.dtype(entry.dtype)
        sound = len(entry.shape) <= 32 and all(type(n) is int and n >= 0 for n in entry.shape)
    except (TypeError, KeyError, ValueError):
        sound = False
    # Numbers only: no objects, no records.
    if not sound or dtype.hasobject or dtype.name != entry.dtype or dtype.itemsize > 16:
        raise DamagedError(f"its manifest does not describe {name!r}")
    return entry


def check_array(name: str, array: Any, entry: ArrayEntry) -> None:
    """Compares an array that was read with its entry in the manifest.

    Raises:
      DamagedError: they differ.
    """
    if not isinstance(array, np.ndarray):
        raise DamagedError(f"{name} is not an array")
    found = ArrayEntry(array.dtype.name, array.shape, "")
    if found[:2] != entry[:2]:
        raise DamagedError(f"{name} is {found}, not {entry}")
    if array_checksum(name, array) != entry.sha256:
        raise DamagedError(f"{name} does not have the checksum that it was saved with")


def misfits(manifest: Manifest, like: Mapping[str, Any]) -> str:
    """Describes where the arrays of a manifest differ from those of `like`; "" if nowhere.

    Args:
      like: objects with shape and dtype, by name.
    """
    wanted = {name: ArrayEntry(np.dtype(x.dtype).name, x.shape, "") for name, x in like.items()}
    lacks = [f"{name} is not in it" for name in wanted if name not in manifest.arrays]
    extra = [f"{name} is only in it" for name in manifest.arrays if name not in wanted]
    other = [
        f"{name} is {entry} there, {wanted[name]} here"
        for name, entry in manifest.arrays.items()
        if name in wanted and entry[:2] != wanted[name][:2]
    ]
    found = lacks + other + extra
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
