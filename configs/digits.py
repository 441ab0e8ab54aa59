"""Handwritten digits with eight workers: the paper's recipe in under a minute."""

import ml_collections

from lbsgd.config import default_config
from lbsgd.errors import ConfigError


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The config; takes no argument."""
    if arg:
        raise ConfigError(f"digits has no variant {arg!r}; leave it out")
    config = default_config()
    config.total_epochs = 40.0
    config.batch_size = 256
    config.worker_batch_size = 32
    config.model.name = "resnet8"
    config.learning_rate.reference_learning_rate = 0.1
    config.learning_rate.reference_batch_size = 32
    config.learning_rate.decay_epochs = (15.0, 28.0, 36.0)
    config.data.crop_padding = 1
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_epochs = 10.0
    config.log.every_steps = 1
    return config
