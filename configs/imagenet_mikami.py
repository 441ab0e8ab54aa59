"""ImageNet with ResNet-50 by Mikami et al. 2018, "Massively Distributed SGD" (arXiv 1811.05233).

    lbsgd train --config imagenet_mikami --config.data.dir=DIR

LARS, label smoothing 0.1, a batch that grows during training (batch-size control), gradients summed
by a 2D torus that they cross in float16 (times a power of two, so that none of them is too small or
too large for it: docs/collectives.md), batch norm evaluated without moving averages.

    version=1     the default: k=1088 workers of n=32, kn=34,816, then k=2176, kn=69,632; 2,208
                  updates. Theirs: 75.03% in 224 s on 2,176 V100
    version=2     n=16, kn=27,648, then 55,296 = 3,456 workers: 2,780 updates. Theirs: 75.29% in
                  122 s on 3,456 V100
    smoke         3 updates on random images, the last of them with twice the batch

Certain are the batch sizes of version 1 and the largest of version 2, GPUs, times, accuracies and
the torus. Not certain, hence our choices after what is remembered of the paper: 90 epochs; where
the batch grows (epoch 30), and from what in version 2; LARS with coefficient 0.01 and epsilon 1e-6;
a rate of 29 after a ramp of 34 epochs and a decay of power 2; label smoothing; that momentum, 0.9
at first, follows the batch size so that the noise scale eta N / (B (1 - m)) does not change with
it; weight decay 5e-5; the decay begins where the ramp ends. n does not change here (theirs was 16,
then 32). The network computes in bfloat16 (theirs in float16), batch norm is evaluated by the
statistics of 69,632 training images, its epsilon is 1e-5 (theirs was adjusted), and the rest, from
initialisation to resampling, is that of configs/imagenet_goyal.py, which lists what is our choice.

lbsgd has not run these to the end. DIR is as in configs/imagenet_goyal.py.
"""

import ml_collections

from lbsgd.run.recipes import Rows, select, set_smoke, sibling
from lbsgd.system.errors import ConfigError


def _set_version(config: ml_collections.ConfigDict, value: str) -> None:
    # n, and the number of workers before and after the change.
    versions = {"1": (32, 1088, 2176), "2": (16, 1728, 3456)}
    if value not in versions:
        raise ConfigError(f"version must be 1 or 2, not {value!r}")
    n, few, many = versions[value]
    config.worker_batch_size = n
    config.batch_size = few * n
    config.batch_growth.sizes = (many * n,)


ROWS: Rows = {"version=": _set_version, "smoke": set_smoke}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the arguments above."""
    config = sibling(__file__, "imagenet_goyal", "batch=8192")
    _set_version(config, "1")
    config.label_smoothing = 0.1
    config.batch_growth.at_epochs = (30.0,)
    config.batch_growth.compensate = "momentum"
    config.batch_norm.precise_examples = 69632
    config.learning_rate.reference_learning_rate = 29.0
    config.learning_rate.scaling = "none"
    config.learning_rate.warmup_from = "zero"
    config.learning_rate.warmup_epochs = 34.0
    config.learning_rate.decay = "polynomial"
    config.optimizer.name = "lars"
    config.optimizer.nesterov = False
    config.optimizer.momentum_form = "rate_inside"
    config.optimizer.momentum_correction = False
    config.optimizer.trust_coefficient = 0.01
    config.optimizer.trust_epsilon = 1e-6
    config.optimizer.weight_decay = 5e-5
    config.allreduce.algorithm = "torus_2d"
    config.allreduce.dtype = "float16"
    return select(config, arg, ROWS)
