"""Errors that end a run early, and the exit codes of the command line."""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class ConfigError(ValueError):
    """A mistake that the user can correct: one line that says what is wrong and what to do.

    `lbsgd.main` prints the line without a traceback and exits with `EXIT_USER`.
    """


class DivergedError(RuntimeError):
    """The loss or the gradient is not finite; `lbsgd.main` exits with `EXIT_DIVERGED`."""


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
