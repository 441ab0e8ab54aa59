"""Exports weights as arrays by name: in torchvision's names, and in lbsgd's own."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

import lbsgd
from lbsgd.system.errors import ConfigError
from lbsgd.use.export.checking import FailedError
from lbsgd.use.export.formats import Format, Options, in_parameter_type, on_host, with_variables
from lbsgd.use.model import Model
from lbsgd.weights.files import open_weights
from lbsgd.weights.stored import model_keys
from lbsgd.weights.torchvision import from_torchvision, to_torchvision, torchvision_network


def described(model: Model) -> dict[str, str]:
    """Writes which network it is, what it takes and gives, as text by name: a file's metadata."""
    about = {**model.interface.to_json(), "model": model_keys(model.config)}
    values = {**about, "lbsgd": lbsgd.__version__}
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in values.items()}


# --- torchvision's names -------------------------------------------------------------------------


def _not_torchvisions(model: Model) -> str:
    try:
        torchvision_network(model.variables)
    except ConfigError as error:
        return str(error)
    return ""


def _torchvision_state(model: Model, options: Options) -> dict[str, np.ndarray]:
    state = to_torchvision(on_host(model))
    if options.keep_float64:
        return state
    return {k: x.astype(np.float32) if x.dtype == np.float64 else x for k, x in state.items()}


def _write_torchvision(model: Model, path: pathlib.Path, options: Options) -> None:
    about = {"format": "pt", "network": torchvision_network(model.variables)}
    about |= described(model)
    path.write_bytes(save(_torchvision_state(model, options), metadata=about))


def _torchvision_outputs(model: Model, path: pathlib.Path, images: np.ndarray) -> Any:
    variables = from_torchvision(_read(path))
    stored = flatten_dict(variables, sep="/")
    own = flatten_dict(on_host(model), sep="/")
    for name, array in own.items():
        _check_equal(path, name, stored[name], array.astype(stored[name].dtype))
    wide = {name: stored[name].astype(array.dtype) for name, array in own.items()}
    network = with_variables(in_parameter_type(model), unflatten_dict(wide, sep="/"))
    return network(images)


# --- lbsgd's names -------------------------------------------------------------------------------


def _write_own(model: Model, path: pathlib.Path, options: Options) -> None:
    flat = flatten_dict(on_host(model), sep="/")
    about = {"format": "flax", **described(model)}
    path.write_bytes(save(flat, metadata=about))


def _write_msgpack(model: Model, path: pathlib.Path, options: Options) -> None:
    path.write_bytes(serialization.msgpack_serialize(on_host(model)))


def _own_outputs(model: Model, path: pathlib.Path, images: np.ndarray) -> Any:
    stored, own = _read(path), on_host(model)
    flat = flatten_dict(own, sep="/")
    if stored.keys() != flat.keys():
        raise FailedError(f"{path.name}: its arrays are others than those that were written")
    for name, array in flat.items():
        _check_equal(path, name, stored[name], array)
    nested = unflatten_dict(dict(stored), sep="/")
    # A network without statistics has none in a file.
    return with_variables(model, {**{key: {} for key in own}, **nested})(images)


def _read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    """Reads all arrays of a file, as `init_from` does."""
    try:
        with open_weights(str(path)) as stored:
            return {name: stored.read(name) for name in stored.entries}
    except ConfigError as error:
        raise FailedError(f"{path.name} cannot be read back ({error})") from error


def _check_equal(path: pathlib.Path, name: str, found: np.ndarray, expected: np.ndarray) -> None:
    same = (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if not same or found.tobytes() != expected.tobytes():
        raise FailedError(f"{path.name}: {name} is not what was written")


def _no_refusal(model: Model) -> str:
    return ""


def _itself(model: Model) -> Model:
    return model


TORCHVISION = Format(
    "model.safetensors",
    _not_torchvisions,
    _write_torchvision,
    _torchvision_outputs,
    in_parameter_type,
    rounding=("float32",),
)
OWN = Format("lbsgd.safetensors", _no_refusal, _write_own, _own_outputs, _itself)
FLAX = Format("flax_model.msgpack", _no_refusal, _write_msgpack, _own_outputs, _itself)
