"""Fashion-MNIST in 176 updates: LARS at kn=1024 (You, Gitman and Ginsburg 2017).

    lbsgd train --config fashion_mnist_lars --config.data.dir=DIR

configs/fashion_mnist.py with 8 workers of 128, ResNet-8 at a quarter of its width and 3 epochs, so
that 2 CPU cores can do it in two minutes; much too short for a good error. The recipe of LARS is
that of configs/digits_lars.py; its rate was chosen by one seed each of 1.5, 4, 10 and 30.

    epochs=20             another length
    smoke                 3 updates on random images

Expected: 32.65% validation error in 176 updates, standard deviation 2.08 over 5 seeds
(docs/results/fashion_mnist.json). configs/fashion_mnist_nesterov.py has 34.18%, standard deviation
7.48, linear scaling 35.14%, 3.17: they differ by less than seeds do, of LARS least. kn=128 has
20.72% in 1,406 updates, so 176 are too few for any. One to two minutes on a CPU core.

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
    config.learning_rate.reference_learning_rate = 15.0
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 0.5
    config.learning_rate.decay = "polynomial"
    config.optimizer.name = "lars"
    config.optimizer.nesterov = False
    config.optimizer.momentum_form = "rate_inside"
    config.optimizer.momentum_correction = False
    reset_unused(config)
    return select(config, arg, ROWS)
