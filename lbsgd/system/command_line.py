"""Parsing of command lines; a mistake raises ConfigError, which `complain` prints as one line."""

import argparse
import sys
from typing import NoReturn

from lbsgd.system.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argparse parser that prints its description as written and raises its errors."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError; argparse itself would print its usage and end the process."""
        raise ConfigError(f"{message}; --help says more")


def complain(error: ConfigError | OSError | str) -> None:
    """Prints an error to stderr as one line."""
    print(f"lbsgd: {' '.join(str(error).split())}", file=sys.stderr)
