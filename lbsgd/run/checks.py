"""What a config says of images and network against what they are."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from lbsgd.data.facts import Facts
from lbsgd.data.source import format_shape
from lbsgd.run.target import Target
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize

# The largest networks there are have a trillion; these are for images.
MOST_PARAMETERS = 10**11
# Of 1/255, the step between two pixels' values; less is a slip.
LEAST_STD = 1e-6
# Normalising one value leaves 0 of it, and two their order: no gradient passes either. (It may pass
# beside them where a block has another way, but what they are in is of no use.)
LEAST_VALUES = 3


def image_shape_of(config: ml_collections.ConfigDict, data: Facts) -> tuple[int, int, int]:
    """Returns `(h, w, c)` of what the network sees."""
    height, width, channels = data.image_shape
    if config.data.crop == "inception":
        height = width = config.data.image_size
    return height, width, channels


def has_top5(classes: int) -> bool:
    """Tells whether a top-5 error says anything: with 5 classes or fewer it is always 0."""
    return classes > 5


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
    target = Target.of(config.stop_at)
    if target and target.logged == "val_error_top5" and not has_top5(classes):
        raise ConfigError(
            f"stop_at: there is no {target.metric} of {pluralize(classes, 'class', 'classes')}; "
            "take val_error or val_accuracy"
        )
    if (data.mixup or data.cutmix) and config.worker_batch_size == 1:
        raise ConfigError("mixup and cutmix mix examples of a worker; worker_batch_size is 1")


def check_normalization(
    config: ml_collections.ConfigDict, values: Mapping[str, int], *, confusion: bool
) -> None:
    """Checks that the normalisation is one that trains.

    Args:
      values: by layer, how many values of an example share a mean and a variance.
      confusion: whether gradient confusion is measured, whose minibatches are workers too.

    Raises:
      ConfigError: a layer of so few values that nothing below it learns.
    """
    kind = config.model.normalization
    if not values:
        return
    layer = min(values, key=lambda name: values[name])
    if kind == "group" and values[layer] < LEAST_VALUES:
        raise ConfigError(
            f"model.normalization='group': {layer} normalises {_values(values[layer])} at a time, "
            "and no gradient passes it; take larger images, or raise model.width"
        )
    if kind == "batch":
        _check_batch(config, layer, values[layer], confusion)


def check_smaller_images(
    config: ml_collections.ConfigDict,
    size: tuple[int, int],
    params: Any,
    smaller: Any,
    values: Mapping[str, int],
) -> None:
    """Checks that a network can train on images of another size than the whole ones.

    Args:
      size: `(h, w)` of the images.
      params: of the network for whole images, or their shapes.
      smaller: of the network for images of that size.
      values: as in `check_normalization`, of images of that size.

    Raises:
      ConfigError: it has other parameters for them, or its normalisation would not train.
    """
    shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, smaller)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"data.augment makes images of {format_shape(size)}, for which the network has other "
            "parameters than for whole ones; take one that averages over positions"
        )
    try:
        check_normalization(config, values, confusion=False)
    except ConfigError as error:
        raise ConfigError(f"images of {format_shape(size)}, of data.augment: {error}") from error


def _check_batch(
    config: ml_collections.ConfigDict, layer: str, of_example: int, confusion: bool
) -> None:
    n, synced = config.worker_batch_size, config.batch_norm.synced_workers
    sizes = {"raise worker_batch_size or batch_norm.synced_workers": n * synced}
    if confusion:
        sizes["raise diagnostics.confusion.batch_size"] = config.diagnostics.confusion.batch_size
    for remedy, examples in sizes.items():
        if examples * of_example < LEAST_VALUES:
            raise ConfigError(
                f"batch norm: {layer} normalises {_values(examples * of_example)} of a channel at "
                f"a time, and no gradient passes it; {remedy}, take larger images, or set "
                "model.normalization='group'"
            )


def _values(count: int) -> str:
    return "1 value" if count == 1 else f"{count} values"
