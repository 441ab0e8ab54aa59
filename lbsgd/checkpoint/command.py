"""Looks at the checkpoints of a run; changes nothing.

    lbsgd checkpoint list WORKDIR              a table of what there is; arrays are not read
    lbsgd checkpoint verify WORKDIR [UPDATE]   reads every array, and compares its checksum
    lbsgd checkpoint show WORKDIR [UPDATE]     whose the newest one is, and what its arrays hold

Exit code 0: all is well; 1: `verify` or `show` found damage; 2: asked for something that is not.
"""

import argparse
from collections.abc import Sequence

from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_USER, ConfigError


def main(argv: Sequence[str]) -> int:
    """Lists, verifies or shows, and returns the exit code."""
    try:
        args = _parse(argv)
        # jax takes its time; mistakes in the arguments need not wait for it.
        from lbsgd.checkpoint.inspection import inspect

        return inspect(args.command, args.workdir, args.update)
    except ConfigError as error:
        complain(error)
        return EXIT_USER


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("lbsgd checkpoint", __doc__)
    parser.add_argument("command", choices=["list", "verify", "show"], help="what to do, as above")
    parser.add_argument(
        "workdir", help="the workdir of a run, its folder of checkpoints, or one checkpoint"
    )
    parser.add_argument(
        "update",
        type=int,
        nargs="?",
        help="the update index of one checkpoint, to take that only; show takes the newest",
    )
    return parser.parse(argv)
