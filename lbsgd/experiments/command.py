"""Runs the sweep of a config file, or reports on sweeps."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs or reports, and returns the exit code."""
    raise NotImplementedError
