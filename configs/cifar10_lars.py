"""CIFAR-10 with LARS at kn=4096 and ResNet-20, for a GPU (You, Gitman and Ginsburg 2017).

    lbsgd train --config cifar10_lars --config.data.dir=DIR

configs/cifar10.py with 32 workers of 128: 2,002 updates in 164 epochs where kn=128 takes 64,062.
The recipe of LARS is that of configs/digits_lars.py; its rate, 15, and warmup of 15 epochs are
guesses from there. lbsgd has not run this to the end.

    batch=1024..16384     kn
    epochs=30             another length
    smoke                 3 updates on random images

DIR is as in configs/cifar10.py.
"""

import ml_collections

from lbsgd.run.recipes import Rows, reset_unused, select, set_epochs, set_smoke, sibling

ROWS: Rows = {"batch=": "batch_size", "epochs=": set_epochs, "smoke": set_smoke}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "cifar10", "batch=4096")
    config.learning_rate.reference_learning_rate = 15.0
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 15.0
    config.learning_rate.decay = "polynomial"
    config.optimizer.name = "lars"
    config.optimizer.momentum_form = "rate_inside"
    config.optimizer.momentum_correction = False
    reset_unused(config)
    return select(config, arg, ROWS)
