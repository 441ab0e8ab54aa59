"""The one exception that speaks to the user."""


class ConfigError(ValueError):
    """Something the user can put right: one line that says what is wrong and what to do.

    `lbsgd.main` prints the line without a traceback and ends with exit code 2.
    """
