"""Remarks 1 and 3 of Goyal et al. 2017 (arXiv 1706.02677): two mistakes, made on purpose.

    lbsgd sweep run remarks --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run remarks:mini --workdir runs/x

Both multiply the loss where something else is meant, and both are to be seen as the mistakes that
they are: the rows are wrong on purpose, and say so.

Remark 1: to scale the loss is not to scale the rate. The weight decay is no part of the loss that
is scaled, so that it is weaker by as much, and nothing warms up: compare it with linear scaling
without warmup. Remark 3: the loss of a worker is to be divided by kn, and not by n, for the
gradients of k workers are summed; divided by n, the gradient is k times as large. With the rate of
one worker the two are said to cancel, which is Remark 1's mistake again. The paper has no numbers.

    row                                            eta       loss
    right                                          scaled    1/kn, the paper's recipe
    right, no warmup                               scaled    1/kn
    wrong on purpose: Remark 1, loss scaled        0.1       1/kn, times what the rate would be
    wrong on purpose: Remark 3, 1/n for 1/kn       scaled    1/n

    mini    digits: ResNet-8 on 400 of them, n=32
    gpu     CIFAR-10: ResNet-20 at its full length of 164 epochs, n=128

The training loss of a wrong row is the one that is multiplied; validation is judged by the right
one.
"""

from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.experiments.scales import scale, scaled_recipe, scaled_settings


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the large minibatch with all it needs; see the variants above."""
    return scaled_recipe(__file__, arg)


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the remarks, right and wrong."""
    s, workers = scale(arg), get_config(arg).batch_size // get_config(arg).worker_batch_size
    yield "right", {}
    yield "right, no warmup", {"learning_rate.warmup": "none"}
    yield (
        "wrong on purpose: Remark 1, loss scaled",
        {**_times(s.times), "learning_rate.scaling": "none", "learning_rate.warmup": "none"},
    )
    yield "wrong on purpose: Remark 3, 1/n for 1/kn", _times(workers)


def _times(factor: int) -> dict[str, Any]:
    """Multiplies the loss."""
    options = {"factor": float(factor)}
    return {"task.name": "lbsgd.experiments.wrong:scaled_loss", "task.options": options}


def settings(arg: str = "") -> Settings:
    """Compares each mistake with what is right."""
    return scaled_settings(
        arg,
        columns=("learning_rate.scaling", "learning_rate.warmup", "task.options"),
    )
