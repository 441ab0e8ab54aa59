"""The weights that a run starts from, where it starts from others than those it draws."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from lbsgd.checkpoint.manifest import array_checksum, named_leaves
from lbsgd.models.networks import Network
from lbsgd.system.bucket import LIKE_BUCKET
from lbsgd.system.processes import in_process_0, json_from_process_0
from lbsgd.system.text import printable, short_repr
from lbsgd.weights.comparison import Compared, advise, pixels_differ
from lbsgd.weights.files import is_missing, nearest, open_weights
from lbsgd.weights.head import head_axes
from lbsgd.weights.matching import (
    TAKEN,
    Names,
    Row,
    check_rows,
    describe_rows,
    match,
    recognize,
    table_of,
)
from lbsgd.weights.stored import Pixels, Stored, UnreadableError
from lbsgd.weights.torchvision import to_own_layout

Arrays = Mapping[str, np.ndarray]
# As much of a digest as tells weights apart, and can be read.
_DIGITS = 16


class InitialWeights(NamedTuple):
    """Says which weights a run starts from.

    Attributes:
      source: the file or the run that they are from.
      what: that is, and whose names its arrays have.
      rows: account for each array; () where they are not there.
      fingerprint: of the values that are taken; "" where nobody has read them.
      missing: why there are none; "" where they are there.
      notes: on what was else where they are from.
    """

    source: str
    what: str = ""
    rows: tuple[Row, ...] = ()
    fingerprint: str = ""
    missing: str = ""
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> list[str]:
        """Lists the names of the variables that are not drawn."""
        return [row.here for row in self.rows if row.what == TAKEN]

    def describe(self) -> list[str]:
        """Describes them, a line each."""
        begins = f"initial weights: {printable(self.source)!r}"
        if self.missing:
            known = f"; the run began with {self.fingerprint}" if self.fingerprint else ""
            return [f"{begins} {self.missing}{known}"]
        first, *others = describe_rows(self.rows)
        mark = f", fingerprint {self.fingerprint}" if self.fingerprint else ""
        return [
            f"{begins} ({self.what}): {first}{mark}",
            *(f"initial weights: {x}" for x in (*others, *self.notes)),
        ]

    def table(self) -> str:
        """Tables all arrays."""
        head = f"{self.source} ({self.what}), fingerprint {self.fingerprint}"
        return f"{head}\n\n{table_of(self.rows)}"


class Variables(NamedTuple):
    """Describes the variables of a network that are to be set.

    Attributes:
      network: whose they are.
      outputs: how many it has.
      classes: what they are called; () where nobody has opened the data.
      pixels: which images it takes.
      shapes: shapes and types by name, as "params/stem_conv/conv/kernel".
    """

    network: Network
    outputs: int
    classes: tuple[str, ...]
    pixels: Pixels
    shapes: Mapping[str, jax.ShapeDtypeStruct]


def source_of(config: ml_collections.ConfigDict) -> str:
    """Writes the seed into `init_from`."""
    return str(config.init_from).replace("{seed}", str(config.seed))


def look_at_weights(config: ml_collections.ConfigDict, variables: Variables) -> InitialWeights:
    """Matches weights to a network without reading them, as far as they are on this disk.

    Raises:
      ConfigError: they do not fit, or their file is damaged.
    """
    source = source_of(config)
    if LIKE_BUCKET.match(source):
        return InitialWeights(source, missing="is read when the run starts")
    if is_missing(source):
        missing = f"is not here, and no run begins without it{nearest(source)}"
        return InitialWeights(source, missing=missing)
    with open_weights(source, averaged=config.init_ema) as stored:
        return _match(config, variables, source, stored)[0]


def read_weights(
    config: ml_collections.ConfigDict, variables: Variables, begun_with: Callable[[], str]
) -> tuple[InitialWeights, Arrays]:
    """Reads the weights in process 0; all processes get to know which they are.

    Args:
      config: of the run.
      variables: of its network.
      begun_with: the fingerprint of the weights that the run began with, should it have begun: it
        can resume without them. Asked in process 0.

    Returns:
      which weights they are, and in process 0 the arrays that are taken, by the names and in the
      types of the variables.

    Raises:
      ConfigError: they cannot be read, are not finite, or do not fit.
    """
    found = in_process_0(lambda: _read(config, variables, begun_with))
    weights, arrays = found or (InitialWeights(""), {})
    source, what, rows, fingerprint, missing, notes = json_from_process_0(weights)
    rows = tuple(map(_row, rows))
    return InitialWeights(source, what, rows, fingerprint, missing, tuple(notes)), arrays


def _row(fields: list[Any]) -> Row:
    """Makes a row again of its JSON."""
    there, here, *shapes, what = fields
    shape_there, shape_here = (None if shape is None else tuple(shape) for shape in shapes)
    return Row(there, here, shape_there, shape_here, what)


def _read(
    config: ml_collections.ConfigDict, variables: Variables, begun_with: Callable[[], str]
) -> tuple[InitialWeights, Arrays]:
    source = source_of(config)
    known = begun_with() if is_missing(source) else ""
    if known:
        return InitialWeights(source, fingerprint=known, missing="is not there any more"), {}
    with open_weights(source, averaged=config.init_ema) as stored:
        weights, names = _match(config, variables, source, stored)
        taken = {row.here: row.there for row in weights.rows if row.what == TAKEN}
        arrays = {
            here: _value(there, stored.read(there), variables.shapes[here], names.of_torch)
            for here, there in taken.items()
        }
    return weights._replace(fingerprint=_fingerprint(arrays)), arrays


def _match(
    config: ml_collections.ConfigDict, variables: Variables, source: str, stored: Stored
) -> tuple[InitialWeights, Names]:
    names = recognize(config.model.name, stored.entries.keys(), variables.shapes.keys())
    there, here = stored.about.classes, variables.classes
    head = functools.cache(lambda: head_axes(config, variables.network, variables.outputs))
    rows = match(
        names,
        stored.entries,
        {name: leaf.shape for name, leaf in variables.shapes.items()},
        head,
        other_classes=bool(there and here) and there != here,
    )
    compared = Compared(rows, names.of_torch, stored.about.model)
    check_rows(rows, config.init_allow, lambda: advise(config, compared, head()))
    notes = pixels_differ(stored.about.pixels, variables.pixels)
    return InitialWeights(source, f"{stored.what}, {names.whose}", rows, notes=notes), names


def _value(there: str, array: np.ndarray, like: jax.ShapeDtypeStruct, of_torch: bool) -> np.ndarray:
    """Brings an array to layout and type of a variable.

    Raises:
      UnreadableError: a value is not finite in that type, or a variance is negative.
    """
    with np.errstate(over="ignore"):
        value = (to_own_layout(array) if of_torch else array).astype(like.dtype)
    if not np.isfinite(value).all():
        raise UnreadableError(f"holds values that are not finite, in {short_repr(there)}")
    if there.endswith(("running_var", "/var")) and (value < 0).any():
        raise UnreadableError(f"holds variances below 0, in {short_repr(there)}")
    return value


def _fingerprint(arrays: Arrays) -> str:
    """Computes a digest of names, types, shapes and values."""
    checksums = [array_checksum(name, array) for name, array in sorted(arrays.items())]
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()[:_DIGITS]


def take(variables: Any, arrays: Mapping[str, jax.Array]) -> Any:
    """Replaces leaves of a tree by arrays of their names; pure."""
    leaves = named_leaves(variables)
    return jax.tree.unflatten(
        jax.tree.structure(variables), [arrays.get(name, leaf) for name, leaf in leaves.items()]
    )
