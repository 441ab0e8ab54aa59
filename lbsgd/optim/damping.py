"""Builds the damping of natural gradients: a number, or its warmup (Osawa et al., CVPR 2019).

lambda_t = (1 - a) lambda_(t-1) + a lambda,    a = 2 log10(lambda_0 / lambda) / T
"""

import math

import ml_collections

from lbsgd.optim.rule import Number
from lbsgd.schedule import functions, times
from lbsgd.schedule.timeline import Timeline
from lbsgd.system.errors import ConfigError


def build_damping(config: ml_collections.ConfigDict, timeline: Timeline) -> Number:
    """Builds what is added to the curvature in each update.

    Args:
      config: of the run.

    Raises:
      ConfigError: a warmup of the damping that is of no length, or does not fall.
    """
    c = config.optimizer
    if not c.initial_damping:
        return float(c.damping)
    length = times.duration(c, "damping_warmup", timeline, "optimizer.")
    if not length:
        raise ConfigError(
            f"optimizer.initial_damping={c.initial_damping:g} needs a length: set optimizer."
            "damping_warmup_epochs, _steps or _examples, or initial_damping=0"
        )
    if c.initial_damping <= c.damping:
        raise ConfigError(
            f"optimizer.initial_damping={c.initial_damping:g} is not above optimizer.damping="
            f"{c.damping:g}, to which it is to fall; raise it, or set it to 0"
        )
    share = 2 * math.log10(c.initial_damping / c.damping) / length
    if share >= 1:
        raise ConfigError(
            f"optimizer.damping_warmup_* is {length:,} updates, too few for the damping to fall "
            f"from {c.initial_damping:g} to {c.damping:g}; make it longer"
        )
    return functions.approach(c.initial_damping, c.damping, share)
