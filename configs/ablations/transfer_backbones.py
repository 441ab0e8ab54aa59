"""Trains the backbones of configs/ablations/transfer.py, by small and by large minibatches.

    lbsgd sweep run transfer_backbones --workdir runs/transfer_backbones \\
        --parallel 2 --config.data.dir=DIR

Goyal et al. 2017 (arXiv 1706.02677) take the networks that they trained with large minibatches to
object detection, and find them as good there as those of small ones. This is the
question in miniature: the first five classes of CIFAR-10 (airplane, automobile, bird, cat, deer),
12 epochs of ResNet-8 at half its width. The rows are one worker of n=32, four, and eight, with
linear scaling and two epochs of gradual warmup. DIR is as in configs/cifar10.py.

    n=128     one worker of 128, and eight: kn=1024 is too much for so few updates
    digits    0 to 4 of the handwritten digits, kn=32 and 256, as configs/digits.py has it

On 2 CPU cores 15 runs of 300,000 images each take about an hour; docs/evidence.md has what
came of it (n = 5).
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from lbsgd.experiments import Settings
from lbsgd.run.recipes import set_epochs, sibling
from lbsgd.system.errors import ConfigError

_CONFIGS = str(pathlib.Path(__file__).parent)
# The k of the rows.
_WORKERS = {"": (1, 4, 8), "n=128": (1, 8), "digits": (1, 8)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Makes the recipe with the large minibatch; see the variants above."""
    if arg not in _WORKERS:
        raise ConfigError(f"no variant {arg!r}; there are n=128 and digits, and n=32 without one")
    of_digits = arg == "digits"
    config = sibling(_CONFIGS, "digits" if of_digits else "cifar10")
    config.worker_batch_size = 128 if arg == "n=128" else 32
    config.batch_size = _WORKERS[arg][-1] * config.worker_batch_size
    if not of_digits:
        set_epochs(config, "12")
        config.learning_rate.warmup_epochs = 2.0
    config.model.name = "cifar_resnet8"
    config.model.width = 0.25 if of_digits else 0.5
    config.data.only_classes = ("0-4",)
    config.evaluation.every_epochs = 0.0
    config.checkpoint.every_epochs = 0.0
    config.log.every_steps = 20
    return config


def sweep(arg: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the small and the larger minibatches."""
    worker_batch_size = get_config(arg).worker_batch_size
    for workers in _WORKERS[arg]:
        batch_size = workers * worker_batch_size
        yield f"kn={batch_size}", {"batch_size": batch_size}


def settings(arg: str = "") -> Settings:
    """Compares larger minibatches with the small one."""
    return Settings(columns=("batch_size",))
