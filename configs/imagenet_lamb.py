"""ImageNet with ResNet-50 and LAMB, after You et al. 2020 (arXiv 1904.00962).

    lbsgd train --config imagenet_lamb --config.data.dir=DIR

With no argument batch=32768, k=512 workers of n=64. The authors' own note on reproduction gives
76.3% top-1 after 3,519 updates (90 epochs) at this size on 128 TPU v3 chips, and says that it
depends on how many examples batch norm sees; no spread is published. lbsgd has not run it to the
end. DIR, augmentation and accumulation are as in configs/imagenet_goyal.py.

    batch=512..32768    any size: rate in proportion to its square root, epochs of warmup to itself
    model=resnet101     another network
    smoke               3 updates on random images at width 1/8 and 32 pixels, 64 a batch

From where the settings are:

    published                 90 epochs, 3,519 updates at 32768
    from memory of the paper  beta 0.9 and 0.999, epsilon 1e-6, weight decay 0.01, phi the identity,
                              square-root scaling, warmup in proportion to the batch size
    our choice                a rate of 0.04 at 32768, 20 epochs of warmup there, from 0, then a
                              straight line to 0; label smoothing 0.1; n=64; neither trust
                              ratio nor decay for biases and norm parameters; bfloat16 and what else
                              configs/imagenet_goyal.py lists as such
"""

import ml_collections

from lbsgd.run.recipes import Rows, imagenet_resnet50, select, set_smoke


def _set_batch_size(config: ml_collections.ConfigDict, value: str) -> None:
    config.batch_size = int(value)
    config.learning_rate.warmup_epochs = 20.0 * config.batch_size / 32768


ROWS: Rows = {"batch=": _set_batch_size, "model=": "model.name", "smoke": set_smoke}


def get_config(arg: str = "batch=32768") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = imagenet_resnet50()
    _set_batch_size(config, "32768")
    config.worker_batch_size = 64
    config.total_epochs = 90.0
    config.label_smoothing = 0.1
    config.learning_rate.reference_learning_rate = 0.04
    config.learning_rate.reference_batch_size = 32768
    config.learning_rate.scaling = "sqrt"
    # Below the reference size, too.
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.decay = "polynomial"
    config.learning_rate.decay_power = 1.0
    config.optimizer.name = "lamb"
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-6
    config.optimizer.weight_decay = 0.01
    return select(config, arg, ROWS)
