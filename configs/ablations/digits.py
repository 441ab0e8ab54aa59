"""Takes the large-minibatch recipe apart on digits, and counts how few updates these need.

    lbsgd sweep run digits --workdir runs/digits --parallel 2

Rows of Tables 1 and 2a and of Figure 1 of Goyal et al. 2017 (arXiv 1706.02677) in small, then the
recipes for few updates: LARS, Nesterov momentum with its schedule, and growing batches, which are
configs/digits_lars.py, digits_nesterov.py and digits_growing.py. kn=32 is one worker, kn=256 is
configs/digits.py.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.run.recipes import changes, sibling
from lbsgd.system.errors import ConfigError

_CONFIGS = str(pathlib.Path(__file__).parent)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the recipe that the rows change; takes no argument."""
    if arg:
        raise ConfigError(f"digits has no variant {arg!r}; leave it out")
    return sibling(_CONFIGS, "digits")


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields small and large minibatches, and recipes for few updates."""
    base = get_config(arg)
    yield "kn=32", {"batch_size": 32}
    yield "kn=256, linear scaling, gradual warmup", {}
    yield "kn=256, constant warmup", {"learning_rate.warmup": "constant"}
    yield "kn=256, no warmup", {"learning_rate.warmup": "none"}
    yield "kn=256, square-root scaling", {"learning_rate.scaling": "sqrt"}
    yield "kn=256, not scaled", {"learning_rate.scaling": "none"}
    yield "kn=512, linear scaling, gradual warmup", {"batch_size": 512}
    yield "kn=1024, linear scaling, gradual warmup", {"batch_size": 1024}
    for name, recipe, variant in (
        ("kn=1024, LARS", "digits_lars", ""),
        ("kn=1024, Nesterov, the schedule of LARS", "digits_nesterov", ""),
        ("kn=128, the rate decays", "digits_growing", "decay"),
        ("kn=128 to 1024, the batch grows instead", "digits_growing", ""),
    ):
        yield name, changes(base, sibling(_CONFIGS, recipe, variant))


def settings(arg: str = "") -> Settings:
    """Compares all with the small minibatch."""
    return Settings(columns=("batch_size",))
