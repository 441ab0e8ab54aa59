"""Runs the sweep of a config file, or reports on sweeps.

    lbsgd sweep run CONFIG[:VARIANT] [--workdir DIR] [options]
    lbsgd sweep report DIR ... [options]

Each says more with --help; docs/sweeps.md tells how a config file has a sweep.
"""

from collections.abc import Callable, Mapping, Sequence

from lbsgd.system.command_line import Parser, complain
from lbsgd.system.errors import EXIT_USER, ConfigError


def main(argv: Sequence[str]) -> int:
    """Runs or reports, and returns the exit code."""
    if argv and argv[0] in _ACTIONS:
        return _ACTIONS[argv[0]](argv[1:])
    parser = Parser("lbsgd sweep", __doc__)
    parser.add_argument("action", choices=list(_ACTIONS), help="what to do, as above")
    try:
        parser.parse(argv)
    except ConfigError as error:
        complain(error)
    return EXIT_USER


def _run(argv: Sequence[str]) -> int:
    from lbsgd.experiments import run_command

    return run_command.main(argv)


def _report(argv: Sequence[str]) -> int:
    from lbsgd.experiments import report_command

    return report_command.main(argv)


_ACTIONS: Mapping[str, Callable[[Sequence[str]], int]] = {"run": _run, "report": _report}
