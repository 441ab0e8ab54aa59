"""Fashion-MNIST in 176 updates: SP-NGD at kn=1024 (Osawa et al. 2020).

    lbsgd train --config fashion_mnist_spngd --config.data.dir=DIR

configs/fashion_mnist.py with 8 workers of 128, ResNet-8 at a quarter of its width and 3 epochs, as
configs/fashion_mnist_lars.py has it. The recipe of SP-NGD is that of configs/digits_spngd.py,
untouched: curvature of an eighth of each worker's examples in each update, no warmup, a rate that
falls from its first value to 0, kernels held to sqrt(2 d_out).

    epochs=20             another length
    smoke                 3 updates on random images

Measured, nothing tuned: 20.99 +- 1.17% error (n = 5) on 2 CPU cores, in 2.4 to 4.4 minutes beside
other work, where LARS has 32.83 +- 2.98% in as many updates, and kn=128 21.32 +- 1.55% in 1,406.

DIR is as in configs/fashion_mnist.py.
"""

import ml_collections

from lbsgd.run.recipes import Rows, reset_unused, select, set_epochs, set_smoke, sibling

ROWS: Rows = {"epochs=": set_epochs, "smoke": set_smoke}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "fashion_mnist", "epochs=3,batch=1024")
    config.model.width = 0.25
    # At the end alone: the result is the median over the final 5 epochs, which would be all of it.
    config.evaluation.every_epochs = 0.0
    config.learning_rate.reference_learning_rate = 0.05
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup = "none"
    config.learning_rate.decay = "polynomial"
    config.optimizer.name = "spngd"
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 0.0
    config.optimizer.damping = 1e-3
    config.optimizer.fisher_share = 0.125
    config.optimizer.weight_rescaling = "larger"
    reset_unused(config)
    return select(config, arg, ROWS)
