"""Equations 9 and 10 of Goyal et al. 2017 (arXiv 1706.02677): where the rate enters the momentum.

    lbsgd sweep run momentum_forms --workdir runs/x \\
        --config.data.dir=DIR
    lbsgd sweep run momentum_forms:mini --workdir runs/x

Outside of the buffer, u <- m u + g and w <- w - eta u (equation 9); or inside, v <- m v + eta g and
w <- w - v (equation 10), which is the same only while the rate is constant. Where it changes, the
buffer of equation 10 is to be multiplied by the new rate over the old one (momentum correction,
Remark 2), and then they are the same again. It matters most where the rate rises at once, as at
the end of constant warmup. The paper gives no numbers; it says that Nesterov and plain momentum are
equally good.

    row                                   what it shows
    equation 9                            plain momentum, rate outside
    equation 10, corrected                the same, to rounding
    equation 10, not corrected            the remark's mistake, under gradual warmup
    Nesterov                              the paper's recipe, rate outside
    constant warmup, equation 9           the rate rises by the factor of linear scaling at once
    constant warmup, 10, not corrected    the remark's mistake, where it matters most

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
    """Yields the forms."""
    plain = {"optimizer.nesterov": False}
    inside = {**plain, "optimizer.momentum_form": "rate_inside"}
    wrong = {**inside, "optimizer.momentum_correction": False}
    constant = {"learning_rate.warmup": "constant"}
    yield "equation 9", plain
    yield "equation 10, corrected", inside
    yield "equation 10, not corrected", wrong
    yield "Nesterov", {}
    yield "constant warmup, equation 9", {**constant, **plain}
    yield "constant warmup, 10, not corrected", {**constant, **wrong}


def settings(arg: str = "") -> Settings:
    """Shows the form of momentum, row by row."""
    return scaled_settings(
        arg,
        columns=(
            "learning_rate.warmup",
            "optimizer.momentum_form",
            "optimizer.momentum_correction",
            "optimizer.nesterov",
        ),
    )
