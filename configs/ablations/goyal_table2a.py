"""Table 2a of Goyal et al. 2017 (arXiv 1706.02677): how the rate follows the minibatch.

    lbsgd sweep run goyal_table2a --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run goyal_table2a:mini --workdir runs/x

In proportion to it (linear scaling), by its square root, or not at all; and how much the reference
rate matters. Top-1 validation error in %, mean and standard deviation of the paper's 5 runs:

    row                       eta              the paper, ResNet-50 on ImageNet
    kn=256, rate / 2          0.05             23.92 +- 0.10
    kn=256                    0.1              23.60 +- 0.12
    kn=256, rate x 2          0.2              23.68 +- 0.09
    kn=8k, linear, rate / 2   0.05 x 32        24.27 +- 0.08
    kn=8k, linear             0.1 x 32         23.74 +- 0.09
    kn=8k, linear, rate x 2   0.2 x 32         24.05 +- 0.18
    kn=8k, not scaled         0.1              41.67 +- 0.10
    kn=8k, square root        0.1 x sqrt(32)   26.22 +- 0.03

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
    rates = ((", rate / 2", s.rate / 2), ("", s.rate), (", rate x 2", s.rate * 2))
    for name, size in (
        (f"kn={short(s.reference)}", s.reference),
        (f"kn={short(s.large)}, linear", s.large),
    ):
        for end, rate in rates:
            yield name + end, {"batch_size": size, "learning_rate.reference_learning_rate": rate}
    yield f"kn={short(s.large)}, not scaled", {"learning_rate.scaling": "none"}
    yield f"kn={short(s.large)}, square root", {"learning_rate.scaling": "sqrt"}


def settings(arg: str = "") -> Settings:
    """Compares each rate with the reference's."""
    return scaled_settings(
        arg,
        columns=("batch_size", "learning_rate.reference_learning_rate", "learning_rate.scaling"),
        baseline=f"kn={short(scale(arg).reference)}",
    )
