"""Table 1 of Goyal et al. 2017 (arXiv 1706.02677): how the rate warms up.

    lbsgd sweep run goyal_table1 --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run goyal_table1:mini --workdir runs/x

A large minibatch with linear scaling is as good as a small one if the rate rises gradually from the
small one's over 5 epochs; it is worse if it stays there for 5 epochs and then jumps, and without
warmup. Top-1 validation error in %, mean and standard deviation of the paper's 5 runs:

    row                       k    n    kn   eta   the paper, ResNet-50 on ImageNet
    kn=256                    8   32   256   0.1   23.60 +- 0.12
    kn=8k, no warmup        256   32    8k   3.2   24.84 +- 0.37
    kn=8k, constant warmup  256   32    8k   3.2   25.88 +- 0.56
    kn=8k, gradual warmup   256   32    8k   3.2   23.74 +- 0.09

    mini    digits: ResNet-8 on 400 of them, judged by the 1,397 others; kn=32 and 256 of n=32, eta
            0.3 and 2.4, warmup over 20 of 180 epochs, 281 updates of the large minibatch.
            1.50 +- 0.34, 3.97 +- 0.29, 62.41 +- 11.56, 2.69 +- 0.38 (docs/evidence.md)
    gpu     CIFAR-10: ResNet-20 at its full length of 164 epochs, n=128
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.experiments.scales import scale, scaled_recipe, scaled_settings, short


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the large minibatch with gradual warmup; see the variants above."""
    return scaled_recipe(__file__, arg)


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of the table."""
    s = scale(arg)
    yield f"kn={short(s.reference)}", {"batch_size": s.reference}
    for row, warmup in (
        ("no warmup", "none"),
        ("constant warmup", "constant"),
        ("gradual warmup", "gradual"),
    ):
        yield f"kn={short(s.large)}, {row}", {"learning_rate.warmup": warmup}


def settings(arg: str = "") -> Settings:
    """Compares each large minibatch with the small one, as in Figure 2."""
    return scaled_settings(
        arg,
        columns=("batch_size", "learning_rate.warmup"),
    )
