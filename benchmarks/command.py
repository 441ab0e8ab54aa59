"""The command line that benchmarks share."""

import sys
from collections.abc import Callable


def run_or_table(
    usage: str | None, run: Callable[..., None], table: Callable[[], str], arguments: int = 0
) -> None:
    """Measures if the command is `run`, and prints the table of the results as for `table`.

    Args:
      usage: printed, with exit code 1, for any other command.
      arguments: how many follow `run` and are given to it.
    """
    command, *given = sys.argv[1:] or [""]
    if command == "run" and len(given) == arguments:
        run(*given)
    elif [command, *given] != ["table"]:
        sys.exit(usage)
    print(table())
