"""Digits in 126 updates or fewer: SP-NGD at kn=1024 (Osawa et al. 2020).

    lbsgd train --config digits_spngd

configs/digits.py with 32 workers of 32, which is most of the training set, and natural gradients:
the curvature is of the first 8 examples of each worker in each update. There is no warmup; the rate
falls from its first value to 0 by a polynomial of power 2, and kernels whose norm grows beyond
sqrt(2 d_out) are scaled back to it.

    updates=63    another length
"""

import ml_collections

from lbsgd.run.recipes import Rows, reset_unused, select, sibling


def _set_updates(config: ml_collections.ConfigDict, value: str) -> None:
    config.total_epochs = 0.0
    config.total_steps = int(value)


ROWS: Rows = {"updates=": _set_updates}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the argument above."""
    config = sibling(__file__, "digits")
    config.batch_size = 1024
    config.learning_rate.reference_learning_rate = 0.05
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup = "none"
    config.learning_rate.decay = "polynomial"
    config.optimizer.name = "spngd"
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 0.0
    config.optimizer.damping = 1e-3
    config.optimizer.fisher_share = 0.25
    config.optimizer.weight_rescaling = "larger"
    config = select(config, arg, ROWS)
    reset_unused(config)
    return config
