"""Command lines of which any mistake is one line: raised by the parser, printed by `complain`."""

import argparse
import sys
from typing import NoReturn

from lbsgd.system.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argparse whose description is printed as it is written."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError, where argparse prints its usage and ends the process."""
        raise ConfigError(f"{message}; --help says more")


def complain(error: ConfigError | OSError | str) -> None:
    """Prints a mistake to stderr as one line."""
    print(f"lbsgd: {' '.join(str(error).split())}", file=sys.stderr)
