"""The folder of a sweep: what lies where, and which rows it has had so far.

sweep.json            the file, the settings, and all rows that were ever run here, in order
ROW/seed_0/           the workdir of a run, as `lbsgd train` has it
ROW/tune_0/           that of a point that was tried
logs/                 what the processes printed
results.json, ...     made by a report
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lbsgd.experiments.settings import Settings
from lbsgd.experiments.sweep import Row, Sweep
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, replace_file


class Description(NamedTuple):
    """Holds what sweep.json says.

    Attributes:
      file: path[:variant] of the config file.
      rows: all that were ever run in the folder; those of the file first, in its order.
      settings: of the file, as it was last.
    """

    file: str
    rows: tuple[Row, ...]
    settings: Settings


class SweepFolder(NamedTuple):
    """Names the files of a sweep.

    Attributes:
      path: the folder.
    """

    path: AnyPath

    @property
    def description(self) -> AnyPath:
        """What the sweep is."""
        return self.path / "sweep.json"

    @property
    def logs(self) -> AnyPath:
        """What its processes printed."""
        return self.path / "logs"

    def seed(self, row: Row, seed: int) -> AnyPath:
        """Returns the workdir of the run of a row with a seed."""
        return self.path / row.folder / f"seed_{seed}"

    def point(self, row: Row, point: int) -> AnyPath:
        """Returns the workdir of the run of a row that tries a point."""
        return self.path / row.folder / f"tune_{point}"

    def is_sweep(self) -> bool:
        """Tells whether a sweep was run here."""
        return self.description.is_file()

    def read(self) -> Description:
        """Reads what the sweep is.

        Raises:
          ConfigError: there is none, or it cannot be read.
        """
        try:
            found = json.loads(self.description.read_text())
            rows = tuple(Row(row["name"], row["overrides"]) for row in found["rows"])
            return Description(found["file"], rows, settings_of(found["settings"]))
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path} holds no sweep: there is no sweep.json") from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self.description} cannot be read ({error})") from error

    def describe(self, sweep: Sweep) -> None:
        """Writes what the sweep is; rows that it has no more are kept, for their runs are here.

        Raises:
          ConfigError: it cannot be written.
        """
        there = self.read().rows if self.is_sweep() else ()
        text = json.dumps(
            {
                "file": sweep.file,
                "settings": dataclasses.asdict(sweep.settings),
                "rows": [_with_folder(row) for row in _merged(sweep.rows, there)],
            },
            indent=1,
        )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self.description, text + "\n")
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written ({error.strerror or error}); choose another "
                "--workdir"
            ) from error


def settings_of(found: Mapping[str, Any]) -> Settings:
    """Makes settings of what JSON has, which knows no tuples."""
    tuples = {
        "columns": tuple(found["columns"]),
        "overlays": tuple(map(tuple, found["overlays"])),
        "tune": {key: tuple(range_) for key, range_ in found["tune"].items()},
    }
    return Settings(**{**found, **tuples})


def _with_folder(row: Row) -> Mapping[str, Any]:
    return {"name": row.name, "folder": row.folder, "overrides": dict(row.overrides)}


def _merged(rows: Iterable[Row], there: Iterable[Row]) -> list[Row]:
    """Lists the rows, and then those that were there and are not among them."""
    kept = list(rows)
    names = {row.name for row in kept}
    return kept + [row for row in there if row.name not in names]
