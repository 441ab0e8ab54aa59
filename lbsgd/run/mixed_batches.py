"""Binds the running mixup of a run, and says what its minibatch is like."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from lbsgd.step.running_mixup import Mixed, running_mixup
from lbsgd.step.worker import Batch
from lbsgd.system.errors import ConfigError
from lbsgd.tasks.build import targets_of
from lbsgd.tasks.task import Task


class RunningMixup(NamedTuple):
    """Holds the running mixup of a run.

    Attributes:
      mix: (the minibatch before, a batch) -> the batch to train on, and its minibatch; pure.
      shapes: of a minibatch as it is stored, `[k, n, ...]`.
    """

    mix: Callable[[Mixed, Batch], tuple[Batch, Mixed]]
    shapes: Mixed


def build_running_mixup(
    config: ml_collections.ConfigDict,
    task: Task,
    preprocess: Callable[[Any], Any],
    image_shape: tuple[int, int, int],
) -> RunningMixup | None:
    """Builds the running mixup of a run; None where it has none.

    Args:
      preprocess: uint8 images -> input of the network.
      image_shape: `(h, w, c)`.

    Raises:
      ConfigError: the task gives something else than a distribution for each example.
    """
    if not config.data.running_mixup:
        return None
    assert task.distributions, "as build_task has it"
    n, batch_size = config.worker_batch_size, config.batch_size
    rows: Any = {"image": np.zeros((1, *image_shape), np.uint8)}
    rows |= targets_of(task, np.zeros(1, np.int32))
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), rows)
    images = jax.eval_shape(preprocess, rows["image"])
    targets = jax.eval_shape(task.distributions, rows)
    if getattr(targets, "ndim", 0) != 2 or targets.shape[0] != n:
        raise ConfigError(
            f"the task gives distributions {getattr(targets, 'shape', targets)} of {n} examples, "
            "which must be [n, classes]"
        )
    shapes = (
        jax.ShapeDtypeStruct((batch_size // n, *x.shape), images.dtype) for x in (images, targets)
    )
    mix = functools.partial(running_mixup, preprocess=preprocess, distributions=task.distributions)
    return RunningMixup(mix, Mixed(*shapes))
