"""Compares runs, and rows of sweeps."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Compares, and returns the exit code."""
    raise NotImplementedError
