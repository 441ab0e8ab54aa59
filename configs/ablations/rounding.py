"""Compares digits on 1 and on 8 devices, which differ by the order of sums alone.

    python benchmarks/rounding.py run

runs this sweep on a CPU that JAX takes for 8 devices, and compares the losses of its runs update by
update.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.run.recipes import sibling
from lbsgd.system.errors import ConfigError


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the recipe that the rows change; takes no argument."""
    if arg:
        raise ConfigError(f"rounding has no variant {arg!r}; leave it out")
    return sibling(str(pathlib.Path(__file__).parent), "digits")


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields a minibatch that trains well and one that does not, on few and many devices."""
    for size in (256, 1024):
        for devices in (1, 8):
            words = "1 device" if devices == 1 else f"{devices} devices"
            yield f"kn={size}, {words}", {"batch_size": size, "devices": devices}


def settings(arg: str = "") -> Settings:
    """Shows what the rows differ in."""
    return Settings(columns=("batch_size", "devices"))
