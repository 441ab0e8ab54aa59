"""The scales at which the papers' tables are repeated, one config file for all of them.

A file in configs/ablations takes one of these names as its variant: the whole of ImageNet with
none, `mini` for two CPU cores, `gpu` for one accelerator. Its rows are written once, for the
minibatches of a scale.
"""

import pathlib
from typing import Any, NamedTuple

import ml_collections

from lbsgd.config.unused import reset_unused
from lbsgd.experiments.settings import Settings
from lbsgd.run.config import KEYS
from lbsgd.run.recipes import sibling
from lbsgd.system.errors import ConfigError

# Of the digits: few, so that the error is far from 0 and single ones count little.
_MINI_EXAMPLES = 400
# Twice the paper's, for a large minibatch has but 281 updates in these; 5 of warmup would be 8.
_MINI_EPOCHS, _MINI_DECAYS, _MINI_WARMUP = 180.0, (60.0, 120.0, 160.0), 20.0
_THOUSAND = 1024


class Scale(NamedTuple):
    """Says what stands for the paper's minibatches.

    Attributes:
      recipe: the config file, in the folder above that of the sweeps.
      reference: the minibatch that the reference rate is for, 256 in the paper.
      large: the largest that was as good, 8k in the paper.
      rate: the reference learning rate.
      deeper: the network that stands for ResNet-101.
      sizes: of the minibatches of Figure 1.
      seeds_at_once: as in `Settings`.
    """

    recipe: str
    reference: int
    large: int
    rate: float
    deeper: str
    sizes: tuple[int, ...]
    seeds_at_once: int = 1

    @property
    def times(self) -> int:
        """By how much the large minibatch is larger: the factor of linear scaling."""
        return self.large // self.reference


def _powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(first << i for i in range((last // first).bit_length()))


SCALES = {
    "": Scale("imagenet_goyal", 256, 8192, 0.1, "resnet101", _powers(64, 131_072)),
    # Of the rates tried, the highest at which the large one trains well after gradual warmup.
    "mini": Scale("digits", 32, 256, 0.3, "cifar_resnet14", _powers(16, 1024)),
    "gpu": Scale("cifar10", 128, 1024, 0.1, "cifar_resnet56", _powers(64, 16_384), 0),
}


def scale(arg: str) -> Scale:
    """Finds the scale that a variant of a sweep names.

    Raises:
      ConfigError: there is none of that name.
    """
    if arg not in SCALES:
        known = " and ".join(filter(None, SCALES))
        raise ConfigError(f"no variant {arg!r}; there are {known}, and ImageNet without one")
    return SCALES[arg]


def scaled_recipe(file: str, arg: str) -> ml_collections.ConfigDict:
    """Makes the config that the rows of a sweep change: the large minibatch with all it needs.

    Args:
      file: `__file__` of the sweep.
      arg: its variant.

    Raises:
      ConfigError: there is no such variant.
    """
    chosen = scale(arg)
    config = sibling(str(pathlib.Path(file).parent), chosen.recipe)
    config.batch_size = chosen.large
    if arg == "mini":
        config.data.train_examples = _MINI_EXAMPLES
        config.data.left_out = "validation"
        config.total_epochs = _MINI_EPOCHS
        config.learning_rate.decay_epochs = _MINI_DECAYS
        config.learning_rate.warmup_epochs = _MINI_WARMUP
        config.evaluation.every_epochs = 2.0
        config.evaluation.batch_size = 1397  # all at once
        config.checkpoint.every_epochs = 0.0
        config.log.every_steps = 10
    if arg:
        config.worker_batch_size = chosen.reference
        config.learning_rate.reference_batch_size = chosen.reference
        config.learning_rate.reference_learning_rate = chosen.rate
        config.optimizer.nesterov = True
        config.model.zero_init_residual = True
    reset_unused(config, KEYS)
    return config


def scaled_settings(arg: str, **shown: Any) -> Settings:
    """Makes the settings of a sweep, with seeds trained at once where that suits the scale.

    Args:
      arg: its variant.
      shown: other fields of `Settings`.

    Raises:
      ConfigError: there is no such variant.
    """
    return Settings(seeds_at_once=scale(arg).seeds_at_once, **shown)


def short(batch_size: int) -> str:
    """Writes a batch size as the paper does: 256, 8k."""
    thousands, rest = divmod(batch_size, _THOUSAND)
    return f"{batch_size}" if rest else f"{thousands}k"
