"""Runs the sweep of a config file, or reports on sweeps.

    lbsgd sweep run FILE[:VARIANT] [--workdir DIR] [options]
    lbsgd sweep report DIR ... [options]

Each says more with --help; docs/sweeps.md tells how a config file has a sweep.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence

from lbsgd.system.command_line import asks_for_help, complain
from lbsgd.system.errors import EXIT_DONE, EXIT_USER
from lbsgd.system.text import short_repr


def main(argv: Sequence[str]) -> int:
    """Runs or reports, and returns the exit code."""
    word, *rest = argv or ["help"]
    if asks_for_help([word]):
        print(__doc__.strip())
        return EXIT_DONE
    if word not in _ACTIONS:
        (near,) = difflib.get_close_matches(word[:100], _ACTIONS, 1, 0.0)
        complain(
            f"lbsgd sweep does not know {short_repr(word)}; the nearest is {near!r}; --help says "
            "more"
        )
        return EXIT_USER
    return _ACTIONS[word](rest)


def _run(argv: Sequence[str]) -> int:
    from lbsgd.experiments import run_command

    return run_command.main(argv)


def _report(argv: Sequence[str]) -> int:
    from lbsgd.experiments import report_command

    return report_command.main(argv)


_ACTIONS: Mapping[str, Callable[[Sequence[str]], int]] = {"run": _run, "report": _report}
