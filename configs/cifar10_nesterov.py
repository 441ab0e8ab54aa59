"""CIFAR-10 with Nesterov momentum at kn=4096 and the schedule of Nado et al. 2021, for a GPU.

    lbsgd train --config cifar10_nesterov --config.data.dir=DIR

configs/cifar10_lars.py (ResNet-20) without LARS: warmup from 0, then polynomial decay of power 2 to
one update past the end. The rate, 1.6, is half of what linear scaling asks for, a guess from
configs/digits_nesterov.py. lbsgd has not run this to the end.

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
    config.learning_rate.reference_learning_rate = 1.6
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 15.0
    config.learning_rate.decay = "polynomial"
    config.learning_rate.decay_past_end_steps = 1
    config.optimizer.nesterov = True
    reset_unused(config)
    return select(config, arg, ROWS)
