"""Finds config files: by path, or by name those that lbsgd brings.

They are the files of configs/ in a checkout, and of lbsgd/_configs where lbsgd is installed from a
wheel, which has a copy. `digits` is configs/digits.py, `ablations/digits` the sweep of that name.
"""

import difflib
import os
import pathlib
from collections.abc import Iterable

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

_PACKAGE = pathlib.Path(__file__).parents[1]
# Of the names of sweeps.
SWEEPS = "ablations/"


def bundled_folder() -> pathlib.Path:
    """Returns the folder of the config files that lbsgd brings."""
    installed = _PACKAGE / "_configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def bundled_configs() -> dict[str, pathlib.Path]:
    """Lists the config files that lbsgd brings, by name; sweeps come last.

    Their paths are relative where they lie below the current folder.
    """
    folder = _shown(bundled_folder())
    recipes = {path.stem: path for path in sorted(folder.glob("*.py"))}
    sweeps = {path.stem: path for path in sorted(folder.glob(f"{SWEEPS}*.py"))}
    return recipes | {SWEEPS + name: path for name, path in sweeps.items()}


def own_configs() -> list[pathlib.Path]:
    """Lists the config files of ./configs, where these are not those that lbsgd brings."""
    folder = pathlib.Path("configs")
    if folder.is_dir() and folder.samefile(bundled_folder()):
        return []
    return [*sorted(folder.glob("*.py")), *sorted(folder.glob(f"{SWEEPS}*.py"))]


def find_config(text: str, *, sweep: bool = False) -> pathlib.Path:
    """Finds the config file that a command line names.

    Args:
      text: a path, or a name; a file that is there comes before one that lbsgd brings.
      sweep: whether of two files of a name the one in ablations/ is meant.

    Raises:
      ConfigError: there is none; the line names the nearest.
    """
    # Unlike pathlib's, it is False for what no disk takes as a name.
    return pathlib.Path(text) if os.path.isfile(text) else bundled_config(text, sweep=sweep)


def bundled_config(name: str, *, sweep: bool = False) -> pathlib.Path:
    """Finds a config file that lbsgd brings; see `find_config`.

    Raises:
      ConfigError: there is none of this name.
    """
    known = bundled_configs()
    names = (SWEEPS + name, name) if sweep else (name, SWEEPS + name)
    found = [known[each] for each in names if each in known]
    if not found:
        raise ConfigError(_not_found(name, known))
    return found[0]


def _not_found(text: str, known: Iterable[str]) -> str:
    """Says what to write instead of what is neither a file nor a name."""
    path = pathlib.Path(text)
    there = os.path.exists(path)
    if there or path.suffix == ".py":
        why = "is no file" if there else "does not exist"
        own = f"; lbsgd's own is called {path.stem!r}" if path.stem in known else ""
        return f"config file {text} {why}{own}"
    last = {name.removeprefix(SWEEPS) for name in known}
    (near,) = difflib.get_close_matches(path.name[:100], sorted(last), 1, 0.0)
    return (
        f"there is no config {short_repr(text)}, neither a file nor by name; the nearest is "
        f"{near!r}, and lbsgd configs lists all"
    )


def _shown(folder: pathlib.Path) -> pathlib.Path:
    here = pathlib.Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
