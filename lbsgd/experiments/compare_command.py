"""Compares runs, sweeps and rows of sweeps: what differs, which is better, is that significant.

    lbsgd compare runs/a runs/b
    lbsgd compare runs/x
    lbsgd compare "runs/x:kn=256" "runs/x:kn=256, no warmup" runs/a_single_run --out pictures

The first is what others are compared with; of a sweep alone its baseline. Prints the keys of the
config that differ, the results with Welch's t test, and where the curves part.

Exit code 0: done; 2: there is nothing to compare, or it cannot be compared.
"""

from collections.abc import Sequence

from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER, ConfigError
from lbsgd.system.files import user_path


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
    parser.add_argument(
        "--metric",
        default="",
        help="a metric of evaluations, such as val_error_top5; by default the headline",
    )
    try:
        found = parser.parse(argv)
        # numpy takes its time; mistakes in the arguments need not wait for it.
        from lbsgd.experiments import compare
        from lbsgd.experiments.selecting import draw, select

        results = select(found.runs, found.metric)
        print("\n".join(compare.report(results)))
        if found.out:
            print(f"\n{draw(results, user_path(found.out))}")
    except ConfigError as error:
        complain(error)
        return EXIT_USER
    return EXIT_DONE
