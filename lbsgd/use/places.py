"""Says what is wrong with a path that is to be a run, before anything slow is imported."""

import pathlib

from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, any_path, nearest_path, user_path
from lbsgd.system.text import printable

# Files of `lbsgd export` by the ends of their names; interface.json lies beside all of them.
_EXPORTED = (".safetensors", ".msgpack", ".stablehlo", ".onnx")
_INTERFACE = "interface.json"


def check_place(run: str | AnyPath) -> None:
    """Checks that a path on the disk is a folder that may be a run or a checkpoint.

    What lies in a bucket is found out when it is read.

    Raises:
      ConfigError: it is an export, a file, not there, or cannot be read.
    """
    path = user_path(run) if isinstance(run, str) else any_path(run)
    if not isinstance(path, pathlib.Path):
        return
    try:
        _check(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{printable(str(path))} cannot be read ({reason})") from error


def _check(path: pathlib.Path) -> None:
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
    near = nearest_path(path, folders=True)
    hint = f"; the nearest that is there is {printable(str(near))!r}" if near else ""
    raise ConfigError(f"{printable(str(path))} is not a folder{hint}")


def _is_export(path: pathlib.Path) -> bool:
    folder = path.parent if path.name.endswith(_EXPORTED) else path
    if not (folder / _INTERFACE).is_file() or (folder / "checkpoints").is_dir():
        return False
    return any(entry.name.endswith(_EXPORTED) for entry in folder.iterdir())
