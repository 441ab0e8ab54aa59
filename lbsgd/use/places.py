"""Says what is wrong with a path that is to be a run, before anything slow is imported."""

import difflib
import pathlib

from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, any_path, user_path
from lbsgd.system.text import printable

# Files of `lbsgd export` by the ends of their names; interface.json lies beside all of them.
_EXPORTED = (".safetensors", ".msgpack", ".stablehlo", ".onnx")
_INTERFACE = "interface.json"


def check_place(run: str | AnyPath) -> None:
    """Checks that a path on the disk is a folder that may be a run or a checkpoint.

    What lies in a bucket is found out when it is read.

    Raises:
      ConfigError: it is an export, a file, or not there.
    """
    path = user_path(run) if isinstance(run, str) else any_path(run)
    if not isinstance(path, pathlib.Path):
        return
    if _is_export(path):
        raise ConfigError(
            f"{printable(str(path))} is an export, and no run: train on from its weights by "
            "--config.init_from=FILE, call model.stablehlo by jax.export, or give its variables to "
            "the module that build_model makes; README.md in it shows each"
        )
    if path.is_dir():
        return
    if path.exists():
        raise ConfigError(
            f"{printable(str(path))} is not a folder; give the workdir of a run, its folder of "
            "checkpoints, or one of them (weights in a file are for --config.init_from)"
        )
    raise ConfigError(f"{printable(str(path))} is not a folder{_nearest(path.absolute())}")


def _is_export(path: pathlib.Path) -> bool:
    folder = path.parent if path.name.endswith(_EXPORTED) else path
    if not (folder / _INTERFACE).is_file() or (folder / "checkpoints").is_dir():
        return False
    return any(entry.name.endswith(_EXPORTED) for entry in folder.iterdir())


def _nearest(path: pathlib.Path) -> str:
    """Names what there is that is most like the first part of a path that is missing."""
    while not path.parent.is_dir():
        path = path.parent
    try:
        there = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name[:100], there, 1)
    return f"; the nearest that is there is {printable(str(path.parent / near[0]))}" if near else ""
