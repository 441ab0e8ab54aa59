"""Fashion-MNIST with a small ResNet: a large-minibatch experiment for one machine.

    lbsgd train --config fashion_mnist --config.data.dir=DIR

60,000 grey images of 28x28. One worker of n=128 at eta = 0.1 is the reference; larger minibatches
are k such workers, with linear scaling and gradual warmup over 2 epochs; 20 epochs, x0.1 at one
half and three quarters; padding 2, crop and flip.

    batch=128..8192       kn; the default is 1024
    model=cifar_resnet20  or any other of lbsgd.models.resnet; the default is cifar_resnet8
    epochs=40             another length, decays in proportion
    smoke                 3 updates on random images at width 1/8

DIR is a data_dir of tensorflow-datasets that has fashion_mnist as ArrayRecord (docs/data.md says
how), or, with --config.data.source=npz, a folder of train.npz and validation.npz.
"""

import ml_collections

from lbsgd.run.config import default_config
from lbsgd.run.recipes import Rows, select, set_epochs, set_smoke

ROWS: Rows = {
    "batch=": "batch_size",
    "model=": "model.name",
    "epochs=": set_epochs,
    "smoke": set_smoke,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = default_config()
    config.batch_size = 1024
    config.worker_batch_size = 128
    config.total_epochs = 20.0
    config.model.name = "cifar_resnet8"
    config.learning_rate.reference_learning_rate = 0.1
    config.learning_rate.reference_batch_size = 128
    config.learning_rate.warmup_epochs = 2.0
    config.learning_rate.decay_epochs = (10.0, 15.0)
    config.optimizer.weight_decay = 1e-4
    config.data.source = "tfds"
    config.data.tfds_name = "fashion_mnist"
    config.data.crop = "padded"
    config.data.crop_padding = 2
    config.data.flip = True
    config.data.mean = (0.2860,)
    config.data.std = (0.3530,)
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_epochs = 5.0
    config.log.every_steps = 10
    return select(config, arg, ROWS)
