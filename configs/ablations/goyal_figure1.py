"""Figures 1 and 3 of Goyal et al. 2017 (arXiv 1706.02677): the error against the minibatch.

    lbsgd sweep run goyal_figure1 --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run goyal_figure1:mini --workdir runs/x

With linear scaling and gradual warmup the error stays until the minibatch reaches some size, then
rises ever faster, and at last the network does not learn any more. Top-1 validation error in %,
mean and standard deviation of the paper's 5 runs (kn=64 is in its figure without a number; of 128k
it says only that training diverges above 64k):

    row       eta     the paper, ResNet-50 on ImageNet
    kn=64     0.025
    kn=128    0.05    23.49 +- 0.12
    kn=256    0.1     23.60 +- 0.12
    kn=512    0.2     23.48 +- 0.09
    kn=1k     0.4     23.53 +- 0.08
    kn=2k     0.8     23.49 +- 0.11
    kn=4k     1.6     23.56 +- 0.12
    kn=8k     3.2     23.74 +- 0.09
    kn=16k    6.4     24.79 +- 0.27
    kn=32k    12.8    27.55 +- 0.28
    kn=64k    25.6    33.96 +- 0.80
    kn=128k   51.2    diverges

    mini    digits: ResNet-8 on 400 of them, n=16, kn=16 to 1k; warmup over 20 of 180
            epochs. As good as kn=32 up to 128, broken from 512 on (docs/evidence.md).
            12 minutes on 2 CPU cores with --parallel 2
    gpu     CIFAR-10: ResNet-20 at its full length of 164 epochs, n=64, kn=64 to 16k

A minibatch smaller than the reference has no warmup, as it needs none.
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
    for size in s.sizes:
        worker = {"worker_batch_size": s.sizes[0]} if arg else {}
        yield f"kn={short(size)}", {"batch_size": size, **worker}


def settings(arg: str = "") -> Settings:
    """Draws the error against the minibatch, and each training curve over the reference's."""
    return scaled_settings(
        arg,
        columns=("batch_size",),
        baseline=f"kn={short(scale(arg).reference)}",
        against="batch_size",
    )
