"""Digits: growing the batch instead of decaying the rate (Smith et al. 2018), and its twin.

    lbsgd train --config digits_growing

configs/digits.py from kn=128 on (eta = 0.4 by linear scaling) with three decays of a factor 5, as
Smith et al. have them, at epochs 30, 60 and 80. Here the batch grows instead, to 640 and then 1024
where it ends, and the rate decays by what is left. 1024 is 71% of the 1,437 training images; Smith
et al. stop at a tenth of the set, which would leave nothing to grow here. At any epoch the noise
scale eta N / (B (1 - m)) is that of the twin, but it is the scale for B far below N: of the paper's
N/B - 1, which it has for N/B before that, 1024 leaves 29%, and the twin's 128 91%.

    decay       the twin: kn=128 throughout, and the rate decays

Expected: 0.44% validation error in 446 updates, standard deviation 0.15 over 5 seeds; the twin has
0.44%, standard deviation 0.32, in 1,010 (docs/results/digits.json). Half a minute on 2 CPU cores.
"""

import ml_collections

from lbsgd.run.recipes import Rows, select, sibling


def _set_decay(config: ml_collections.ConfigDict, _: str) -> None:
    config.batch_growth.update({"in_place_of_decay": False, "largest": 0})


ROWS: Rows = {"decay": _set_decay}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The recipe; see the argument above."""
    config = sibling(__file__, "digits")
    config.batch_size = 128
    config.learning_rate.decay_factor = 0.2
    config.batch_growth.in_place_of_decay = True
    config.batch_growth.largest = 1024
    return select(config, arg, ROWS)
