"""CIFAR-10 by the schedules of Smith et al. 2018 (section 5.1, Table 1), for a GPU.

    lbsgd train --config cifar10_growing --config.data.dir=DIR

200 epochs, factor 5 at epochs 60, 120 and 160, workers (ghost batches) of n=128, Nesterov momentum.
Their network was a Wide ResNet 16-4; here it is ResNet-20, so accuracies are for comparison only.

    row=original      kn=128, eta=0.1, and the rate decays: 78,125 updates (theirs: 94.3%)
    row=growing       the default: kn=128, 640, 3200, 16,000: 28,875 updates (theirs: 94.4%)
    row=rate          eta=0.5, kn=640, 3200, 5120, then the rate decays: 6,407 updates (94.5%)
    row=momentum      and m=0.98, kn=3200, 5120: 2,305 updates (theirs: 93.3%)
    row=hybrid        kn=128, then 640, then the rate decays: 34,375 updates
    smoke             3 updates on random images, the last of them with twice the batch

Weight decay 5e-4 is our choice, as are padding 4, crop and flip. lbsgd has not run these to the
end. DIR is as in configs/cifar10.py.
"""

import ml_collections

from lbsgd.run.recipes import Rows, reset_unused, select, set_smoke, sibling
from lbsgd.system.errors import ConfigError

# First kn, eta, m, largest kn (0: any); no growth where the largest is the first.
TABLE = {
    "original": (128, 0.1, 0.9, 128),
    "growing": (128, 0.1, 0.9, 0),
    "rate": (640, 0.5, 0.9, 5120),
    "momentum": (3200, 0.5, 0.98, 5120),
    "hybrid": (128, 0.1, 0.9, 640),
}


def _set_row(config: ml_collections.ConfigDict, value: str) -> None:
    if value not in TABLE:
        raise ConfigError(f"row must be one of {', '.join(TABLE)}, not {value!r}")
    config.batch_size, rate, config.optimizer.momentum, largest = TABLE[value]
    config.learning_rate.reference_learning_rate = rate
    config.batch_growth.in_place_of_decay = True
    config.batch_growth.largest = largest


ROWS: Rows = {"row=": _set_row, "smoke": set_smoke}


def get_config(arg: str = "row=growing") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "cifar10")
    config.total_epochs = 200.0
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup = "none"
    config.learning_rate.decay_epochs = (60.0, 120.0, 160.0)
    config.learning_rate.decay_factor = 0.2
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    _set_row(config, "growing")
    reset_unused(config)
    return select(config, arg, ROWS)
