"""draft"""

import ml_collections

from lbsgd.recipes import Rows, select, sibling

ROWS: Rows = {}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = sibling(__file__, "digits")
    config.batch_size = 1024
    config.learning_rate.scaling = "none"
    config.learning_rate.reference_learning_rate = 10.0
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 10.0
    config.learning_rate.decay = "polynomial"
    config.optimizer.name = "lars"
    config.optimizer.nesterov = False
    config.optimizer.momentum_form = "rate_inside"
    config.optimizer.momentum_correction = False
    return select(config, arg, ROWS)
