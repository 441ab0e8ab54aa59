"""Which parameters decay (Goyal et al. 2017, section 5.1): an ablation of our own.

    lbsgd sweep run weight_decay_scope --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run weight_decay_scope:mini --workdir runs/x

The paper spares gamma and beta of batch norm from weight decay, and says nothing of biases; lbsgd
spares these too. It is a choice by role, not by name. The paper gives no numbers.

    row                         what decays
    kernels                     what lbsgd decays: convolutions and classifier
    kernels, biases             the paper to the letter: all but batch norm
    all                         gamma and beta too, as most frameworks do unless told otherwise
    none                        nothing

    mini    digits: ResNet-8 on 400 of them, n=32
    gpu     CIFAR-10: ResNet-20 at its full length of 164 epochs, n=128
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.experiments.scales import scaled_recipe, scaled_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the large minibatch with all it needs; see the variants above."""
    return scaled_recipe(__file__, arg)


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the roles."""
    for name, roles in (
        ("kernels", ("kernel",)),
        ("kernels, biases", ("kernel", "bias")),
        ("all", ("kernel", "bias", "norm scale", "norm offset")),
    ):
        yield name, {"optimizer.decayed_roles": roles}
    yield "none", {"optimizer.weight_decay": 0.0}


def settings(arg: str = "") -> Settings:
    """Shows which roles decay, row by row."""
    return scaled_settings(
        arg,
        columns=("optimizer.weight_decay", "optimizer.decayed_roles"),
    )
