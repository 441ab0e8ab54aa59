"""What ends a run early, and the exit codes of the command line."""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class ConfigError(ValueError):
    """A mistake that the user can correct: one line that says what is wrong and what to do.

    `lbsgd` prints the line without a traceback and ends with `EXIT_USER`.
    """


class CodeError(ConfigError):
    """A mistake in code that a config names, which is not lbsgd's own."""


class DivergedError(RuntimeError):
    """Loss or gradient are not finite; `lbsgd train` ends with `EXIT_DIVERGED`."""


def first_line(error: Exception) -> str:
    """Takes the first line of what an error of a library says."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
