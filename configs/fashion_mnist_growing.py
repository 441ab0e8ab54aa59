"""Fashion-MNIST: growing the batch instead of decaying the rate (Smith et al. 2018), and its twin.

    lbsgd train --config fashion_mnist_growing --config.data.dir=DIR

configs/fashion_mnist.py from one worker of n=128 on (eta = 0.1), ResNet-8 at a quarter of its
width, 3 epochs, with decays of a factor 5 at epochs 1.5 and 2.25. Here the batch grows instead, to
640 and 3200; the limit is Smith's, a tenth of the training set. At any epoch the noise scale
eta N / (B (1 - m)) is that of the twin.

    decay                 the twin: kn=128 throughout, and the rate decays
    epochs=20             another length, decays in proportion
    smoke                 3 updates on random images, the last of them with twice the batch

Expected: 21.91% validation error in 787 updates, standard deviation 1.94 over 5 seeds; the twin has
20.72%, standard deviation 1.13, in 1,406 (docs/results/fashion_mnist.json): the difference is
within what seeds make. One to two minutes on a CPU core.

DIR is as in configs/fashion_mnist.py.
"""

import ml_collections

from lbsgd.run.recipes import Rows, select, set_epochs, set_smoke, sibling


def _set_decay(config: ml_collections.ConfigDict, _: str) -> None:
    config.batch_growth.update({"in_place_of_decay": False, "largest": 0})


ROWS: Rows = {"decay": _set_decay, "epochs=": set_epochs, "smoke": set_smoke}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "fashion_mnist", "epochs=3,batch=128")
    config.model.width = 0.25
    # At the end alone: the result is the median over the final 5 epochs, which would be all of it.
    config.evaluation.every_epochs = 0.0
    config.learning_rate.decay_factor = 0.2
    config.batch_growth.in_place_of_decay = True
    config.batch_growth.largest = 6000
    return select(config, arg, ROWS)
