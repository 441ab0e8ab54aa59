"""Counts the updates in which LARS, SP-NGD and growing batches learn Fashion-MNIST.

    lbsgd sweep run fashion_mnist --workdir runs/fashion --parallel 2 \\
        --config.data.dir=DIR

ResNet-8 at a quarter of its width for 3 epochs, so that 2 CPU cores can do it; far from what this
set allows. The rows are configs/fashion_mnist_growing.py and its twin, whose rate decays;
linear scaling; and configs/fashion_mnist_lars.py, fashion_mnist_nesterov.py and
fashion_mnist_spngd.py. DIR is as in configs/fashion_mnist.py.
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
        raise ConfigError(f"fashion_mnist has no variant {arg!r}; leave it out")
    config = sibling(_CONFIGS, "fashion_mnist", "epochs=3,batch=1024")
    config.model.width = 0.25
    config.learning_rate.warmup_epochs = 0.5
    # At the end alone: the result is the median over the final 5 epochs, which would be all of it.
    config.evaluation.every_epochs = 0.0
    return config


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the twin with a small minibatch, and what needs fewer updates."""
    base = get_config(arg)
    for name, recipe, variant in (
        ("kn=128, the rate decays", "fashion_mnist_growing", "decay"),
        ("kn=128 to 3200, the batch grows instead", "fashion_mnist_growing", ""),
    ):
        yield name, changes(base, sibling(_CONFIGS, recipe, variant))
    yield "kn=1024, linear scaling, gradual warmup", {}
    for name, recipe in (
        ("kn=1024, LARS", "fashion_mnist_lars"),
        ("kn=1024, Nesterov, the schedule of LARS", "fashion_mnist_nesterov"),
        ("kn=1024, SP-NGD", "fashion_mnist_spngd"),
    ):
        yield name, changes(base, sibling(_CONFIGS, recipe))


def settings(arg: str = "") -> Settings:
    """Compares all with the small minibatch."""
    return Settings(columns=("batch_size",))
