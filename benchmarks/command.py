"""The command line that benchmarks share."""

import sys
from collections.abc import Callable


def run_or_table(usage: str | None, run: Callable[[], None], table: Callable[[], str]) -> None:
    """Measures if the command is `run`, and prints the table of the results as for `table`.

    Args:
      usage: printed, with exit code 1, for any other command.
    """
    if sys.argv[1:] not in (["run"], ["table"]):
        sys.exit(usage)
    if sys.argv[1] == "run":
        run()
    print(table())
