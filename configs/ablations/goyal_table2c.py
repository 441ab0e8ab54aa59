"""Table 2c of Goyal et al. 2017 (arXiv 1706.02677): a deeper network, ResNet-101.

    lbsgd sweep run goyal_table2c --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run goyal_table2c:mini --workdir runs/x

Nothing is chosen anew for it. Top-1 validation error in %, mean and standard deviation of the
paper's 5 runs:

    row      eta   the paper, ResNet-101 on ImageNet
    kn=256   0.1   22.08 +- 0.06
    kn=8k    3.2   22.36 +- 0.09

    mini    digits: ResNet-14 on 400 of them, n=32
    gpu     CIFAR-10: ResNet-56 at its full length of 164 epochs, n=128
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.experiments.scales import scale, scaled_recipe, scaled_settings, short


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the large minibatch with all it needs; see the variants above."""
    return scaled_recipe(__file__, arg)


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of the table."""
    s = scale(arg)
    for size in (s.reference, s.large):
        yield f"kn={short(size)}", {"batch_size": size, "model.name": s.deeper}


def settings(arg: str = "") -> Settings:
    """Compares the large minibatch with the small one."""
    return scaled_settings(
        arg,
        columns=("batch_size", "model.name"),
    )
