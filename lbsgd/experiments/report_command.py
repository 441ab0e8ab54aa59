"""Reports on sweeps and single runs, finished or not, as one table.

    lbsgd sweep report runs/x
    lbsgd sweep report runs/x runs/a_single_run --out reports/both

Prints the table, and writes it with the pictures, report.html (one file, for a browser or to send)
and results.json (all numbers: every run's config, versions, curves and outcome).

Exit code 0: done; 2: one of the folders holds no results, or they cannot be compared.
"""

from collections.abc import Sequence

from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.files import AnyPath, user_path


def main(argv: Sequence[str]) -> int:
    """Reports, and returns the exit code."""
    try:
        folders, out, metric = _read(argv)
        # numpy and matplotlib take their time; mistakes in the arguments need not wait for them.
        from lbsgd.experiments.report import make_report

        report = make_report(folders, out, metric)
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    print(report.table)
    print()
    for path in report.files:
        print(path)
    if report.missing:
        print(report.missing)
    return EXIT_DONE


def _read(argv: Sequence[str]) -> tuple[list[AnyPath], AnyPath, str]:
    """Reads the folders, the one that the report is written into, and the metric."""
    parser = Parser("lbsgd sweep report", __doc__)
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="DIR",
        help="the folder of a sweep or of one of its rows, the workdir of a run, or a results.json",
    )
    parser.add_argument("--out", metavar="DIR", help="default: the folder of the only sweep or run")
    parser.add_argument(
        "--metric",
        default="",
        help="a metric of evaluations, such as val_error_top5; by default the headline",
    )
    found = parser.parse(argv)
    folders = [user_path(folder) for folder in found.folders]
    if found.out:
        return folders, user_path(found.out), found.metric
    if len(folders) > 1:
        raise ConfigError("of several folders: say with --out DIR where the report is to be")
    out = folders[0].parent if folders[0].is_file() else folders[0]
    return folders, out, found.metric
