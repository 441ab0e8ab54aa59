"""CIFAR-10 with SP-NGD at kn=4096 and ResNet-20, for a GPU (Osawa et al. 2020).

    lbsgd train --config cifar10_spngd --config.data.dir=DIR

configs/cifar10.py with 32 workers of 128 and a quarter of its length: 488 updates in 40 epochs,
where configs/cifar10_lars.py has 2,002. The recipe of SP-NGD is that of configs/digits_spngd.py,
with curvature of an eighth of the examples and the paper's stale statistics; its rate, damping and
length are guesses from there. lbsgd has not run this to the end.

    batch=1024..16384     kn
    epochs=80             another length
    smoke                 3 updates on random images

DIR is as in configs/cifar10.py.
"""

import ml_collections

from lbsgd.run.recipes import Rows, reset_unused, select, set_epochs, set_smoke, sibling

ROWS: Rows = {"batch=": "batch_size", "epochs=": set_epochs, "smoke": set_smoke}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "cifar10", "epochs=40,batch=4096")
    config.learning_rate.reference_learning_rate = 0.05
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup = "none"
    config.learning_rate.decay = "polynomial"
    config.optimizer.name = "spngd"
    config.optimizer.weight_decay = 0.0
    config.optimizer.damping = 1e-3
    config.optimizer.fisher_share = 0.125
    config.optimizer.stale_threshold = 0.1
    config.optimizer.weight_rescaling = "larger"
    reset_unused(config)
    return select(config, arg, ROWS)
