"""Chooses the view and the augmentation that a config names, for training and for evaluation."""

import ml_collections

from lbsgd.data.augment import Color, CropAndFlip
from lbsgd.data.corrupt import Corrupt
from lbsgd.data.pipeline import Loader
from lbsgd.data.source import Source
from lbsgd.data.views import CentreCrop, InceptionCrop, View, Whole

Shape = tuple[int, int, int]


def training_loader(
    config: ml_collections.ConfigDict, source: Source, image_shape: Shape, corrupt: Corrupt
) -> Loader:
    """Loads training examples, cropped and augmented.

    Args:
      config: of the run.
      image_shape: `(h, w, c)` of what the network sees.
    """
    data, seed = config.data, config.seed
    view: View = Whole(image_shape)
    if data.crop == "inception":
        crop = data.crop_area, data.crop_aspect, data.crop_antialias
        view = InceptionCrop(image_shape, seed, *crop)
    padding = data.crop_padding if data.crop == "padded" else 0
    augment = (
        CropAndFlip(seed, padding, data.flip),
        Color(seed, data.color_jitter, data.lighting),
    )
    return Loader(source, view, augment, corrupt, data.threads)


def evaluation_loader(
    config: ml_collections.ConfigDict, source: Source, image_shape: Shape, corrupt: Corrupt
) -> Loader:
    """Loads validation examples: as they are, or their centre.

    Args:
      config: of the run.
      image_shape: `(h, w, c)` of what the network sees.
    """
    data = config.data
    view: View = Whole(image_shape)
    if data.crop == "inception":
        view = CentreCrop(image_shape, data.evaluation_short_side)
    return Loader(source, view, (), corrupt, data.threads)
