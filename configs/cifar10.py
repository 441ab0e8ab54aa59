"""CIFAR-10 with ResNet-20 and -56 of He et al. 2015 (section 4.2), from one worker to thirty-two.

    lbsgd train --config cifar10 --config.data.dir=DIR

Their recipe: minibatch 128, eta 0.1, weight decay 1e-4, 164 epochs (64,000 updates), x0.1 at one
half and three quarters, padding 4, crop and flip. That is one worker of n=128 here; larger
minibatches are k such workers, with linear scaling and gradual warmup over 5 epochs. Our choice:
one worker for what lay on their two GPUs, no decay of biases and norm parameters, each channel's
mean and deviation for their mean image, the initialisation of Goyal et al. but for its zero gammas.

    batch=128..4096       kn; the default is 128
    model=cifar_resnet56  or any other of lbsgd.models.resnet
    epochs=30             another length, decays in proportion
    cifar100              the same recipe on CIFAR-100, whose 100 classes come with the data
    smoke                 3 updates on random images at width 1/8

DIR is a data_dir of tensorflow-datasets that has cifar10 (or cifar100) as ArrayRecord (docs/data.md
says how), or, with --config.data.source=packed, a set of `lbsgd prepare`.

He et al. report 8.75% error for ResNet-20 and 6.97% for ResNet-56 at batch=128, and none on
CIFAR-100. lbsgd has not run these to the end, and CIFAR-100 not at all. What 26 minutes of 2 busy
CPU cores (200 images/s) were enough for, on a copy of CIFAR-10 as JPEGs in class folders (lossy:
not to be compared with the above), is 25.31% error (one seed) after 6 epochs
(docs/results/cifar10.json):

    lbsgd prepare CIFAR-10-JPEGS PACKED
    lbsgd train --config cifar10:epochs=6 --config.data.source=packed \\
        --config.data.dir=PACKED
"""

import ml_collections

from lbsgd.run.config import default_config
from lbsgd.run.recipes import Rows, select, set_epochs, set_smoke


def _cifar100(config: ml_collections.ConfigDict, _: str) -> None:
    config.data.tfds_name = "cifar100"
    config.data.mean = (0.5071, 0.4865, 0.4409)
    config.data.std = (0.2673, 0.2564, 0.2762)


ROWS: Rows = {
    "batch=": "batch_size",
    "model=": "model.name",
    "epochs=": set_epochs,
    "cifar100": _cifar100,
    "smoke": set_smoke,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = default_config()
    config.batch_size = 128
    config.worker_batch_size = 128
    config.total_epochs = 164.0
    config.model.name = "cifar_resnet20"
    config.model.zero_init_residual = False
    config.learning_rate.reference_learning_rate = 0.1
    config.learning_rate.reference_batch_size = 128
    config.learning_rate.warmup_epochs = 5.0
    config.learning_rate.decay_epochs = (82.0, 123.0)
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4
    config.data.source = "tfds"
    config.data.tfds_name = "cifar10"
    config.data.crop = "padded"
    config.data.crop_padding = 4
    config.data.flip = True
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_epochs = 5.0
    return select(config, arg, ROWS)
