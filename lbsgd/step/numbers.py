"""Holds the numbers of an update, which a compiled step takes as arguments.

What they are belongs to no program: runs that differ in them alone share one. Whether a number is 0
does, as every choice of form: then another step is traced.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, no_type_check


# Plans hold schedules in the places of numbers, and compilers shapes: not to be checked.
@no_type_check
class Numbers(NamedTuple):
    """Holds the numbers of one update, scalars all.

    Attributes:
      seed: of the run, uint32; by it, the update index and the worker, dropout is drawn.
      update_index: t, int32; `train_step` takes its state's own.
      optimizer: learning rate, momentum, weight decay, ... by the keywords of the transformation.
      task: label smoothing, ... by the keywords of the task's loss.
      batch_norm_momentum: 0.9 for r <- 0.9 r + 0.1 (mean over workers).
      ema_decay: d of the average of weights e <- d e + (1 - d) w.
    """

    seed: Any = 0
    update_index: Any = 0
    optimizer: Mapping[str, Any] = {}
    task: Mapping[str, Any] = {}
    batch_norm_momentum: Any = 0.9
    ema_decay: Any = 0.0
