"""What a config says of images and network against what they are."""

import math
from typing import Any

import jax
import ml_collections

from lbsgd.data.facts import Facts
from lbsgd.data.image_sizes import ImageSizes
from lbsgd.data.keys import RESIZING_CROPS
from lbsgd.data.source import format_shape
from lbsgd.models.networks import Outline, build_network, outline
from lbsgd.models.values import Values, check_values
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize

# The largest networks there are have a trillion; these are for images.
MOST_PARAMETERS = 10**11
# Of 1/255, the step between two pixels' values; less is a slip.
LEAST_STD = 1e-6


def image_shape_of(config: ml_collections.ConfigDict, data: Facts) -> tuple[int, int, int]:
    """Returns `(h, w, c)` of what the network sees."""
    height, width, channels = data.image_shape
    if config.data.crop in RESIZING_CROPS:
        height = width = config.data.image_size
    return height, width, channels


def _check_size(params: Any) -> None:
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
    sides = ["evaluation_short_side"] if data.crop in RESIZING_CROPS else []
    sides += ["crop_short_side"] if data.crop == "random" else []
    for side in sides:
        if data[side] < max(image_shape[:2]):
            raise ConfigError(
                f"data.{side}={data[side]} is less than data.image_size={data.image_size}, which "
                "is taken out of it"
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
    if (data.mixup or data.cutmix) and data.running_mixup:
        raise ConfigError(
            "data.running_mixup mixes with the minibatch before, data.mixup and data.cutmix within "
            "the minibatch; set the one or the others to 0"
        )
    if (data.mixup or data.cutmix) and config.worker_batch_size == 1:
        raise ConfigError("mixup and cutmix mix examples of a worker; worker_batch_size is 1")


def check_shards(config: ml_collections.ConfigDict, examples: int, batch_sizes: list[int]) -> None:
    """Raises ConfigError where the workers cannot share out the examples."""
    if config.data.shuffle != "shards":
        return
    if len(batch_sizes) > 1:
        raise ConfigError(
            "data.shuffle='shards' splits the data among workers once, and where the batch grows "
            "there are more of them later; leave the batch as it is, or set data.shuffle='global'"
        )
    workers = batch_sizes[0] // config.worker_batch_size
    if workers > examples:
        raise ConfigError(
            f"data.shuffle='shards' leaves some of {pluralize(workers, 'worker')} without any of "
            f"{pluralize(examples, 'example')}; lower batch_size, or set data.shuffle='global'"
        )


def check_running_mixup(
    config: ml_collections.ConfigDict,
    batch_sizes: list[int],
    other_sizes: list[tuple[int, int]],
) -> None:
    """Raises ConfigError where a minibatch cannot be mixed with the one before.

    Args:
      other_sizes: `(h, w)` of images in training that are not whole.
    """
    if not config.data.running_mixup:
        return
    if len(batch_sizes) > 1:
        raise ConfigError(
            "data.running_mixup mixes each example with one of the minibatch before, which has "
            "fewer where the batch grows; leave the batch as it is, or set data.running_mixup=0"
        )
    if other_sizes:
        raise ConfigError(
            f"data.augment makes images of {format_shape(other_sizes[0])}, and data.running_mixup "
            "mixes them with those of the update before, which must be as large; leave out either"
        )


def check_network(
    config: ml_collections.ConfigDict,
    data: Facts,
    found: Outline,
    image_sizes: ImageSizes,
    confusion: bool,
) -> None:
    """Raises ConfigError where a network cannot train on its images, of whatever size."""
    _check_size(found.params)
    check_values(config, found.values, confusion=confusion)
    whole = image_shape_of(config, data)
    for size in image_sizes.smaller_than(whole):
        outputs = config.model.num_classes or data.classes
        smaller = outline(build_network(config, outputs, (*size, whole[2])))
        check_smaller_images(config, size, found.params, smaller.params, smaller.values)


def check_smaller_images(
    config: ml_collections.ConfigDict,
    size: tuple[int, int],
    params: Any,
    smaller: Any,
    values: Values,
) -> None:
    """Checks that a network can train on images of another size than the whole ones.

    Args:
      size: `(h, w)` of the images.
      params: of the network for whole images, or their shapes.
      smaller: of the network for images of that size.
      values: what of them is normalised together.

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
        check_values(config, values, confusion=False)
    except ConfigError as error:
        raise ConfigError(f"images of {format_shape(size)}, of data.augment: {error}") from error
