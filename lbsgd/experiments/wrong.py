"""Makes the mistakes that a paper warns of, on purpose, to show what they cost.

Nothing of lbsgd's own uses them. A config names one by `task.name`.
"""

import functools
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import is_number
from lbsgd.tasks.classification import classification
from lbsgd.tasks.task import Task


def scaled_loss(classes: int, factor: float) -> Task:
    """Makes classification whose loss in training is multiplied by a constant.

    Goyal et al. 2017: with factor kn / reference_batch_size and an unscaled rate it is the mistake
    of Remark 1, for weight decay is then weaker by as much; with factor k it is that of Remark 3,
    each worker dividing by n where kn is meant. Evaluation has the right loss.

    Raises:
      ConfigError: the factor is no positive number.
    """
    if not is_number(factor) or not 0 < factor < float("inf"):
        raise ConfigError(f"task.options.factor must be a positive number, not {factor!r}")
    task = classification(classes)
    # A number of the step, so that rows with other factors share a compiled one.
    return Task(
        **{
            **vars(task),
            "loss": functools.partial(_scaled, task.loss),
            "numbers": {"factor": factor},
        }
    )


def _scaled(
    loss: Any, logits: Any, batch: Mapping[str, Any], *, factor: Float[Array, ""]
) -> tuple[Float[Array, ""], Mapping[str, Any]]:
    value, metrics = loss(logits, batch)
    return factor.astype(value.dtype) * value, metrics
