"""Reads a sweep: the rows of a config file, each a run per seed, and how they are reported.

A config file that has a sweep says beside `get_config(arg="")` what differs from it, row by row:

    from lbsgd.experiments import Settings

    def sweep(arg=""):
        yield "kn=32", {"batch_size": 32}
        yield "kn=256, no warmup", {"batch_size": 256, "learning_rate.warmup": "none"}

    def settings(arg=""):
        return Settings(seeds=5, columns=("batch_size",), baseline="kn=32")

`settings` may be left out.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from lbsgd.experiments.settings import Settings, check_settings, plain
from lbsgd.run.config import check_is_key, in_effect, resolve
from lbsgd.run.config_file import ConfigFile
from lbsgd.run.flags import keys_of, set_key, set_keys
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# What lies in the folder of a sweep besides its rows: what processes print, and a report.
_TAKEN = re.compile(r"logs|.*\.(json|md|html|png)")


class Row(NamedTuple):
    """Holds a row of a sweep.

    Attributes:
      name: as tables show it.
      overrides: values by dotted key of the config.
    """

    name: str
    overrides: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Returns the name of the row's folder: its name in letters that any disk takes."""
        plain = re.sub(r"[^A-Za-z0-9.=]+", "_", self.name).strip("_.")[:60]
        # What was lost of it may be all that tells two rows apart, also where case does not count.
        if plain == self.name and plain == plain.lower() and not _TAKEN.fullmatch(plain):
            return plain
        return f"{plain}_{hashlib.sha256(self.name.encode()).hexdigest()[:6]}".lstrip("_")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Holds a sweep as its file says it.

    Attributes:
      file: the config file, with its variant: "configs/ablations/goyal_table1.py:mini".
      base: the config of the file, with what the command line sets; not resolved.
      rows: in order, with different names and folders.
      settings: see `Settings`.
    """

    file: str
    base: ml_collections.ConfigDict
    rows: tuple[Row, ...]
    settings: Settings

    def config(self, row: Row, seed: int, **tuned: Any) -> ml_collections.ConfigDict:
        """Resolves the config of a run.

        Args:
          tuned: values by dotted key of the config that stand in for the row's own.

        Raises:
          ConfigError: the row sets what cannot be.
        """
        config = self.base.copy_and_resolve_references()
        try:
            for key, value in {**row.overrides, **tuned, "seed": seed}.items():
                check_is_key(key)
                set_key(config, key, value)
            return resolve(config)
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from error


def read_sweep(file: str, flags: Sequence[str] = ()) -> Sweep:
    """Reads the sweep of a config file.

    Args:
      file: path[:variant] or name[:variant].
      flags: `--config.key=value`, which count for all rows that do not set that key themselves.

    Raises:
      ConfigError: it has none, or one that cannot be run.
    """
    opened = ConfigFile(file, sweep=True)
    if not opened.has("sweep"):
        raise ConfigError(
            f"{opened.path} has no sweep: a function sweep(arg='') that yields rows, each a name "
            "and a dict of what differs from get_config, as in docs/sweeps.md"
        )
    rows = opened.call("sweep", _rows)
    settings = opened.call("settings", _settings(rows)) if opened.has("settings") else Settings()
    _check_reach(rows, settings, flags)
    sweep = Sweep(file, set_keys(opened.config(), flags), rows, settings)
    _check_differ(sweep)
    return sweep


def _check_reach(rows: Sequence[Row], settings: Settings, flags: Sequence[str]) -> None:
    """Raises ConfigError where a key that is set on the command line reaches no row."""
    for key in keys_of(flags):
        why = ""
        if key == "seed":
            why = "the seeds are 0, 1, ..., and --seeds N says how many"
        elif key in settings.tune:
            why = f"{key} is tuned"
        elif all(key in row.overrides for row in rows):
            why = f"every row sets {key} itself"
        if why:
            raise ConfigError(f"--config.{key} has no effect: {why}")


def _check_differ(sweep: Sweep) -> None:
    """Raises ConfigError where a row cannot be, or computes what another does."""
    names: dict[str, str] = {}
    for row in sweep.rows:
        config = sweep.config(row, seed=0)
        # What is tuned may give an effect to keys that have none yet.
        found = (config if sweep.settings.tune else in_effect(config)).to_dict()
        other = names.setdefault(json.dumps(found, sort_keys=True), row.name)
        if other != row.name:
            raise ConfigError(
                f"rows {other!r} and {row.name!r} come to the same config, so that their runs "
                "would be the same; take one out, or mend what it sets"
            )


def _rows(found: Any) -> tuple[Row, ...]:
    if not isinstance(found, Iterable):
        raise ConfigError(f"sweep() must yield rows, not return {short_repr(found)}")
    rows = tuple(map(_row, found))
    if not rows:
        raise ConfigError("sweep() yields no row")
    names, folders = [row.name for row in rows], [row.folder for row in rows]
    twice = [row.name for row in rows if names.count(row.name) + folders.count(row.folder) > 2]
    if twice:
        raise ConfigError(f"sweep() yields the row {twice[0]!r} twice; give it a name of its own")
    return rows


def _row(found: Any) -> Row:
    if not (isinstance(found, (tuple, list)) and len(found) == 2):
        raise ConfigError(f"sweep() must yield (name, overrides), not {short_repr(found)}")
    name, overrides = found
    if not (isinstance(name, str) and name.strip() and name.isprintable()):
        raise ConfigError(f"the name of a row must be words in a line, not {short_repr(name)}")
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise ConfigError(
            f"row {name!r}: what differs must be a dict by key of the config, not "
            f"{short_repr(overrides)}"
        )
    if "seed" in overrides:
        raise ConfigError(f"row {name!r} sets the seed; Settings(seeds=N) says how many there are")
    found = plain(overrides)
    try:
        json.dumps(found)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"row {name!r} sets what is no number, word or list: {error}") from error
    return Row(name, found)


def _settings(rows: Sequence[Row]) -> Callable[[Any], Settings]:
    """Makes the check of what `settings()` returns."""

    def check(found: Any) -> Settings:
        if not isinstance(found, Settings):
            raise ConfigError(f"settings() must return Settings(...), not {short_repr(found)}")
        found = Settings(**plain(vars(found)))
        check_settings(found)
        names = [row.name for row in rows]
        for name in filter(None, [found.baseline, *itertools.chain(*found.overlays)]):
            if name not in names:
                raise ConfigError(f"settings() names the row {name!r}; sweep() yields none of it")
        for row in rows:
            for key in row.overrides.keys() & found.tune.keys():
                raise ConfigError(f"row {row.name!r} sets {key}, which is tuned; leave out one")
        return found

    return check
