"""Table 2b of Goyal et al. 2017 (arXiv 1706.02677): residual blocks that begin as the identity.

    lbsgd sweep run goyal_table2b --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run goyal_table2b:mini --workdir runs/x

The scale gamma of the last batch norm of each residual block starts at 1, as usual, or at 0. Top-1
validation error in %, mean and standard deviation of the paper's 5 runs:

    row               eta   the paper, ResNet-50 on ImageNet
    kn=256, gamma=1   0.1   23.84 +- 0.18
    kn=256, gamma=0   0.1   23.60 +- 0.12
    kn=8k, gamma=1    3.2   24.11 +- 0.07
    kn=8k, gamma=0    3.2   23.74 +- 0.09

    mini    digits: ResNet-8 on 400 of them, n=32
    gpu     CIFAR-10: ResNet-20 at its full length of 164 epochs, n=128
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
        for gamma in (1, 0):
            overrides = {"batch_size": size, "model.zero_init_residual": gamma == 0}
            yield f"kn={short(size)}, gamma={gamma}", overrides


def settings(arg: str = "") -> Settings:
    """Compares both initial scales at both sizes."""
    return scaled_settings(
        arg,
        columns=("batch_size", "model.zero_init_residual"),
        baseline=f"kn={short(scale(arg).reference)}, gamma=0",
    )
