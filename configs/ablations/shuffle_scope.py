"""Shuffles all examples together, or each worker's part (Remark 4 of Goyal et al. 2017).

    lbsgd sweep run shuffle_scope --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run shuffle_scope:mini --workdir runs/x

The paper shuffles all examples once an epoch, and shares them out among its workers anew
(data.shuffle="global"). Many loaders share them out once and for all, and each worker shuffles its
own (data.shuffle="shards"): the batch norm of a worker then never sees what others have. The paper
says which is right, and gives no numbers. Where the parts are drawn at random, as here, little
speaks for a difference.

    row      order
    global   the paper's
    shards   each worker has a random part of its own, throughout

    mini    digits: ResNet-8 on 400 of them, n=32
    gpu     CIFAR-10: ResNet-20 at its full length of 164 epochs, n=128
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.experiments.scales import scaled_recipe, scaled_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the large minibatch with all it needs; see the variants above."""
    return scaled_recipe(__file__, arg)


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the orders."""
    for shuffle in ("global", "shards"):
        yield shuffle, {"data.shuffle": shuffle}


def settings(arg: str = "") -> Settings:
    """Compares shards with the paper's order."""
    return scaled_settings(
        arg,
        columns=("data.shuffle",),
    )
