"""Reads state dicts that PyTorch saved, by PyTorch itself, which unpickles tensors only.

`torch.load(weights_only=True)` knows the few things that a state dict is made of, and refuses all
else; without PyTorch such a file is not read at all.
"""

import importlib
import importlib.util
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lbsgd.weights.stored import Entry, Stored, UnreadableError

# What training scripts put a state dict into, and wrappers before the names of their module's.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
# Of protocols 2 to 5.
_PICKLES = [bytes([0x80, protocol]) for protocol in range(2, 6)]
_INSTALL = (
    "was saved by PyTorch, which is not here to read it; pip install torch, or convert it to "
    "safetensors where PyTorch is: docs/weights.md says how"
)


def begins(start: bytes) -> bool:
    """Tells whether a file begins as PyTorch saves one: as a zip archive, or as a pickle."""
    return start.startswith(b"PK\x03\x04") or start[:2] in _PICKLES


def open_state_dict(path: pathlib.Path) -> Stored:
    """Opens the state dict in a file; the arrays stay on the disk where they can.

    Raises:
      UnreadableError: it holds more than tensors, or PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UnreadableError(_INSTALL)
    torch = importlib.import_module("torch")
    found, where = _state_dict(_load(torch, path), torch)
    entries = {name: _entry(value, torch) for name, value in found.items()}
    what = "state dict of PyTorch" + (f", in its {where!r}" if where else "")
    return Stored(what, entries, lambda name: _array(found[name], torch))


def _load(torch: Any, path: pathlib.Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        with warnings.catch_warnings(action="ignore"):  # about ways to save that are old
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # unpickling what is damaged or hostile fails in any way
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else str(error)
        raise UnreadableError(
            f"is no state dict that PyTorch reads without executing what is in it ({reason})"
        ) from error


def _state_dict(loaded: Any, torch: Any) -> tuple[dict[str, Any], str]:
    """Finds the state dict in what was loaded, and what it was wrapped in."""
    where: list[str] = []
    while isinstance(loaded, Mapping) and not _holds_tensors(loaded, torch):
        inside = [key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inside:
            break
        where.append(inside[0])
        loaded = loaded[inside[0]]
    if not isinstance(loaded, Mapping) or not _holds_tensors(loaded, torch):
        raise UnreadableError(
            f"holds no state dict: no tensors by name, nor below {', '.join(_WRAPPERS)}"
        )
    return _without_prefix({str(name): value for name, value in loaded.items()}), ".".join(where)


def _holds_tensors(mapping: Mapping[Any, Any], torch: Any) -> bool:
    return any(isinstance(value, torch.Tensor) for value in mapping.values())


def _without_prefix(found: dict[str, Any]) -> dict[str, Any]:
    """Takes off what DataParallel and torch.compile put before all names."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in found):
            return _without_prefix({n.removeprefix(prefix): value for n, value in found.items()})
    return found


def _entry(value: Any, torch: Any) -> Entry:
    """Describes a value; what is no dense tensor has a type that no array has."""
    if not isinstance(value, torch.Tensor):
        return Entry((), type(value).__name__)
    dense = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    kind = str(value.dtype).removeprefix("torch.")
    return Entry(tuple(value.shape), kind if dense else f"{value.layout} {kind}")


def _array(value: Any, torch: Any) -> np.ndarray:
    """Copies a tensor; numpy has no bfloat16, each of whose values is one of float32."""
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()
