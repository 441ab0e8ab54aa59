"""Loaders with the views and the augmentation that a config names."""

import ml_collections

from lbsgd.data.augment import Color, CropAndFlip
from lbsgd.data.augmentation.named import Augmentation
from lbsgd.data.corrupt import CorruptExamples
from lbsgd.data.interface import Interface
from lbsgd.data.pipeline import Augment, Loader, Targets
from lbsgd.data.source import Source
from lbsgd.data.views import InceptionCrop, RandomCrop, View, Whole

Shape = tuple[int, int, int]


def training_loader(
    config: ml_collections.ConfigDict,
    source: Source,
    image_shape: Shape,
    corrupt: CorruptExamples,
    targets: Targets | None = None,
    augmentation: Augmentation | None = None,
) -> Loader:
    """Builds the loader of training examples, cropped and augmented as the config says.

    Args:
      config: the config of the run.
      image_shape: `(h, w, c)` of the network's input.
      targets: what the task makes of labels.
      augmentation: what `data.augment` names, which comes last.
    """
    data, seed = config.data, config.seed
    view: View = Whole(image_shape)
    if data.crop == "inception":
        crop = data.crop_area, data.crop_aspect, data.crop_antialias
        view = InceptionCrop(image_shape, seed, *crop)
    elif data.crop == "random":
        view = RandomCrop(image_shape, seed, data.crop_short_side, data.crop_antialias)
    padding = data.crop_padding if data.crop == "padded" else 0
    augment: tuple[Augment, ...] = (
        CropAndFlip(seed, padding, data.flip),
        Color(seed, data.color_jitter, data.lighting),
        *([augmentation] if augmentation else []),
    )
    return Loader(source, view, augment, corrupt, data.threads, targets)


def evaluation_loader(
    config: ml_collections.ConfigDict,
    source: Source,
    interface: Interface,
    corrupt: CorruptExamples,
    targets: Targets | None = None,
) -> Loader:
    """Builds the loader of validation examples: whole images or centre crops, not augmented.

    Args:
      config: the config of the run.
      interface: of the network.
      targets: what the task makes of labels.
    """
    return Loader(source, interface.view(), (), corrupt, config.data.threads, targets)
