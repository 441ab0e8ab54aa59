"""Compares runs, sweeps and rows of sweeps: what differs, which is better, is that significant.

    lbsgd compare runs/a runs/b
    lbsgd compare runs/x
    lbsgd compare "runs/x:kn=256" "runs/x:kn=256, no warmup" runs/a_single_run --out pictures

The first is what others are compared with; of a sweep alone its baseline. Prints the keys of the
config that differ, the results with Welch's t test, and where the curves part.

Exit code 0: done; 2: there is nothing to compare, or it cannot be compared.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.loading import combine, load
from lbsgd.experiments.results import Results
from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.files import AnyPath, user_path


def main(argv: Sequence[str]) -> int:
    """Compares, and returns the exit code."""
    parser = Parser("lbsgd compare", __doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the workdir of a run, the folder of a sweep, or of one of its rows as FOLDER:ROW",
    )
    parser.add_argument("--out", metavar="DIR", help="writes the curves into it, as compare.png")
    parser.add_argument("--metric", default="", help="of evaluations, such as val_error_top5")
    try:
        found = parser.parse(argv)
        results = select(found.runs, found.metric)
        from lbsgd.experiments import compare

        print("\n".join(compare.report(results)))
        if found.out:
            print(f"\n{_draw(results, user_path(found.out))}")
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    return EXIT_DONE


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
        if SweepFolder(path).is_sweep():
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


def _draw(results: Results, folder: AnyPath) -> AnyPath:
    """Writes the curves of all rows over each other, and returns where."""
    from lbsgd.experiments import figures  # slow to import

    if not any(row.drawn() for row in results.rows):
        raise ConfigError("there are no curves to draw yet")
    rows = [results.baseline, *(row for row in results.rows if row is not results.baseline)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror or error})") from error
    figures.save(figures.curves_figure(results, rows), folder / "compare.png")
    return folder / "compare.png"
