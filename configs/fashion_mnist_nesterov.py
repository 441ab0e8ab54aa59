"""Fashion-MNIST in 176 updates: Nesterov momentum, with the schedule of Nado et al. 2021.

    lbsgd train --config fashion_mnist_nesterov --config.data.dir=DIR

configs/fashion_mnist_lars.py without LARS: warmup from 0, then polynomial decay of power 2 to one
update past the end. Its rate was chosen by one seed each of 0.4, 0.8 and 1.6.

    epochs=20             another length
    smoke                 3 updates on random images

Expected: 34.18% validation error in 176 updates, standard deviation 7.48 over 5 seeds
(docs/results/fashion_mnist.json); LARS 32.65%, standard deviation 2.08. One to two minutes on a CPU
core.

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
    config.learning_rate.reference_learning_rate = 0.8
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 0.5
    config.learning_rate.decay = "polynomial"
    config.learning_rate.decay_past_end_steps = 1
    reset_unused(config)
    return select(config, arg, ROWS)
