"""Reads times that are given in epochs, steps (updates) or examples."""

import ml_collections

from lbsgd.config.keys import Keys, names_of_times
from lbsgd.system.errors import ConfigError


def given(config: ml_collections.ConfigDict, name: str) -> tuple[str, float]:
    """Reads the unit and the number of the time called `name`; ("", 0) if none is given.

    Raises:
      ConfigError: it is given twice.
    """
    units = ("epochs", "steps", "examples")
    times = {unit: config[f"{name}_{unit}"] for unit in units if config[f"{name}_{unit}"]}
    if len(times) > 1:
        keys = " and ".join(f"{name}_{unit}={value}" for unit, value in times.items())
        raise ConfigError(f"{keys} say the same thing; set all but one to 0")
    return next(iter(times.items()), ("", 0))


def check_times(config: ml_collections.ConfigDict, keys: Keys) -> None:
    """Raises ConfigError if one of the times among the keys is given twice."""
    for time in names_of_times(keys):
        *groups, name = time.split(".")
        part = config
        for group in groups:
            part = part[group]
        given(part, name)
