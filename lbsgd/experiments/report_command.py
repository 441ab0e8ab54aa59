"""Reports on sweeps and runs."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Reports, and returns the exit code."""
    raise NotImplementedError
