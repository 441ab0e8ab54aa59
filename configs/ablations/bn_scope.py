"""Batch norm over n examples: the scope of its statistics (Goyal et al. 2017, section 2.3).

    lbsgd sweep run bn_scope --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run bn_scope:mini --workdir runs/x

The large minibatch is shared out among workers of n examples, and the statistics are over those of
one worker. The number n is part of the loss (equation 5): it stays where the minibatch grows, and
another n is another problem. Here the minibatch stays, and n changes; or workers of the usual n
share their statistics: some of them, or all, which is what a large batch without workers has. The
paper compares none of these: it has n=32 everywhere.

    row, ImageNet           statistics over
    n=32                    32, the paper's
    n=8                     8
    n=128                   128
    n=32, 8 workers synced  256
    all workers synced      8192: the large batch without workers

    mini    digits: ResNet-8 on 400 of them, n=8 to kn
    gpu     CIFAR-10: ResNet-20 at its full length of 164 epochs, n=32 to kn
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.experiments.scales import scale, scaled_recipe, scaled_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the large minibatch with all it needs; see the variants above."""
    return scaled_recipe(__file__, arg)


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the scopes."""
    n, group = get_config(arg).worker_batch_size, 8 if not arg else 2
    workers = scale(arg).large // n
    yield f"n={n}", {}
    for other in (n // 4, 4 * n):
        yield f"n={other}", {"worker_batch_size": other}
    yield f"n={n}, {group} workers synced", {"batch_norm.synced_workers": group}
    yield "all workers synced", {"batch_norm.synced_workers": workers}


def settings(arg: str = "") -> Settings:
    """Shows what statistics are over, row by row."""
    return scaled_settings(
        arg,
        columns=("worker_batch_size", "batch_norm.synced_workers"),
    )
