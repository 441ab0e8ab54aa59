"""Handwritten digits with eight workers: the recipe of Goyal et al. 2017 in a few seconds.

    lbsgd train --config digits

scikit-learn's 1,797 handwritten digits (8x8, grey; every fifth is for validation), ResNet-8, and
the paper's schedule to the letter: 90 epochs, gradual warmup over the first 5, x0.1 at epochs 30,
60 and 80. The reference is one worker of n=32 at a rate of 0.1; kn=256 in 8 workers of 32 makes
eta = 0.8 by linear scaling.

Expected: 99.50% validation accuracy, standard deviation 0.23 over 5 seeds (median over the final
5 epochs of each; docs/results/digits.json), in about 10 seconds of training on 2 CPU cores. One
worker of 32 with eight times the updates reaches 99.67%, standard deviation 0.12.
"""

import ml_collections

from lbsgd.run.config import default_config
from lbsgd.system.errors import ConfigError


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The config; takes no argument."""
    if arg:
        raise ConfigError(f"digits has no variant {arg!r}; leave it out")
    config = default_config()
    config.batch_size = 256
    config.worker_batch_size = 32
    config.total_epochs = 90.0
    config.model.name = "cifar_resnet8"
    config.learning_rate.reference_learning_rate = 0.1
    config.learning_rate.reference_batch_size = 32
    config.learning_rate.warmup_epochs = 5.0
    config.learning_rate.decay_epochs = (30.0, 60.0, 80.0)
    config.optimizer.weight_decay = 1e-4
    config.data.source = "digits"
    config.data.crop = "padded"
    config.data.crop_padding = 1
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_epochs = 30.0
    config.log.every_steps = 1
    return config
