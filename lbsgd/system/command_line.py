"""Parsing of command lines; a mistake raises ConfigError, which `complain` prints as one line."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from lbsgd.system.errors import ConfigError

# Lines of help are no longer, however wide the terminal is.
MOST_COLUMNS = 100


def asks_for_help(argv: Sequence[str]) -> bool:
    """Tells whether arguments ask for help: by a flag among them, or by the word alone."""
    return list(argv) == ["help"] or not {"-h", "--help", "-help", "--h"}.isdisjoint(argv)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Of help within `MOST_COLUMNS`."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((MOST_COLUMNS, 24)).columns
        super().__init__(prog, width=min(columns, MOST_COLUMNS) - 1)


class Parser(argparse.ArgumentParser):
    """An argparse parser that prints its description as written and raises its errors."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses arguments; such as ask for help print it and end the process with 0.

        Raises:
          ConfigError: a mistake in them.
        """
        return self.parse_args(["--help"] if asks_for_help(argv) else argv)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError; argparse itself would print its usage and end the process."""
        raise ConfigError(f"{message}; --help says more")


def complain(error: ConfigError | OSError | str) -> None:
    """Prints an error to stderr as one line."""
    print(f"lbsgd: {' '.join(str(error).split())}", file=sys.stderr)
