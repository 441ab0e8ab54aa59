"""Selects what is compared: runs, sweeps, and rows of sweeps, by how a command line names them."""

import dataclasses
from collections.abc import Iterator, Sequence

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.loading import combine, load
from lbsgd.experiments.results import Results
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, user_path


def select(runs: Sequence[str], metric: str = "") -> Results:
    """Reads what is to be compared, the first of it with the others.

    Args:
      runs: as on the command line.
      metric: of evaluations; by default the headline.

    Raises:
      ConfigError: there are not two, or one is no run.
    """
    results = combine([_read(text) for text in runs], metric)
    if len(results.rows) < 2:
        raise ConfigError(
            f"there is nothing to compare {results.rows[0].name!r} with; give two runs or more, "
            "sweeps, or rows of sweeps as FOLDER:ROW"
        )
    if len(runs) == 1:
        return results
    return dataclasses.replace(results, settings=dataclasses.replace(results.settings, baseline=""))


def _read(text: str) -> Results:
    for path, row in _splits(text):
        if SweepFolder(path).is_sweep() or path.is_file():
            return _only(load(path), row)
    return load(user_path(text))


def _splits(text: str) -> Iterator[tuple[AnyPath, str]]:
    """Splits FOLDER:ROW at each colon, for both may have some."""
    for i, letter in enumerate(text):
        if letter == ":" and 0 < i < len(text) - 1 and not text[i:].startswith("://"):
            yield user_path(text[:i]), text[i + 1 :]


def _only(results: Results, name: str) -> Results:
    """Selects a row of a sweep."""
    row = results.row(name)
    settings = dataclasses.replace(results.settings, baseline="", overlays=())
    return dataclasses.replace(results, rows=(row,), settings=settings)


def draw(results: Results, folder: AnyPath) -> AnyPath:
    """Writes the curves of all rows over each other, and returns where.

    Raises:
      ConfigError: there are none, or they cannot be written.
    """
    from lbsgd.experiments.figures import curves_figure  # slow to import
    from lbsgd.system.figures import save_figure

    if not any(row.drawn() for row in results.rows):
        raise ConfigError("there are no curves to draw yet")
    rows = [results.baseline, *(row for row in results.rows if row is not results.baseline)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_figure(curves_figure(results, rows), folder / "compare.png")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror or error})") from error
    return folder / "compare.png"
