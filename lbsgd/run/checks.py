"""What a config says of images and network against what they are."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from lbsgd.data.facts import Facts
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr
from lbsgd.tasks.task import Task

# The largest networks there are have a trillion; these are for images.
MOST_PARAMETERS = 10**11
# Of 1/255, the step between two pixels' values; less is a slip.
LEAST_STD = 1e-6


def image_shape_of(config: ml_collections.ConfigDict, data: Facts) -> tuple[int, int, int]:
    """Returns `(h, w, c)` of what the network sees."""
    height, width, channels = data.image_shape
    if config.data.crop == "inception":
        height = width = config.data.image_size
    return height, width, channels


def check_size(params: Any) -> None:
    """Raises ConfigError if the network has more parameters than any machine holds."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    if count > MOST_PARAMETERS:
        raise ConfigError(
            f"a network of {count:,} parameters is larger than {MOST_PARAMETERS:,}; lower "
            "model.width or model.num_classes"
        )


def check_data(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], classes: int
) -> None:
    """Raises ConfigError where the config says of the data what they are not."""
    data, channels = config.data, image_shape[-1]
    for key in ("mean", "std"):
        given = len(data[key])
        if given not in (1, channels):
            raise ConfigError(f"data.{key} has {given} numbers, the images {channels} channels")
    if min(data.std) < LEAST_STD:
        raise ConfigError(f"data.std must not hold 0, nor less than {LEAST_STD:g}")
    padded = data.crop == "padded" and not data.synthetic_on_device
    if padded and data.crop_padding >= min(image_shape[:2]):
        raise ConfigError(
            f"data.crop_padding={data.crop_padding} can leave nothing of images of "
            f"{image_shape[0]}x{image_shape[1]}; set it to less"
        )
    if data.crop == "inception" and data.evaluation_short_side < max(image_shape[:2]):
        raise ConfigError(
            f"data.evaluation_short_side={data.evaluation_short_side} is less than "
            f"data.image_size={data.image_size}, which is taken out of it"
        )
    if channels != 3 and (any(data.color_jitter) or data.lighting):
        raise ConfigError(
            f"data.color_jitter and data.lighting are for 3 channels, the images have {channels}"
        )
    if 0 < config.model.num_classes < classes:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}, but the data have {classes} classes; "
            "set it to 0 to take theirs"
        )
    if (data.mixup or data.cutmix) and config.worker_batch_size == 1:
        raise ConfigError("mixup and cutmix mix examples of a worker; worker_batch_size is 1")


def check_task(config: ml_collections.ConfigDict, task: Task) -> None:
    """Raises ConfigError where the config asks of a task what it has not."""
    if (config.data.mixup or config.data.cutmix) and not task.mixes:
        raise ConfigError(
            f"mixup and cutmix mix labels, which the task {config.task.name!r} does not know of; "
            "set data.mixup=0 and data.cutmix=0"
        )


# Keys of a batch that are not a task's: its input, and what was drawn for each example.
NOT_TARGETS = frozenset({"image", "mask", "mix_share", "mix_box", "erase_box"})


def targets_of(task: Task, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Makes a task's targets of labels, int32 `[n]`.

    Raises:
      ConfigError: they are no arrays of as many rows, or have a name that a batch has already.
    """
    targets = task.targets(labels)
    if not isinstance(targets, Mapping) or not all(
        isinstance(x, np.ndarray) and x.shape[:1] == labels.shape for x in targets.values()
    ):
        raise ConfigError(
            "targets of a task must be numpy arrays [n, ...] by name, of labels [n]; not "
            f"{short_repr(targets)} of {labels.tolist()}"
        )
    taken = sorted(NOT_TARGETS & targets.keys())
    if taken:
        raise ConfigError(f"a task's target cannot be called {taken[0]!r}; a batch has that")
    return dict(targets)
