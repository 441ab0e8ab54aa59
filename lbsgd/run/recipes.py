"""Arguments of config files: `configs/x.py:batch=4096,smoke` selects a variant of a recipe."""

import functools
import os
import pathlib
import runpy
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from lbsgd.config import unused
from lbsgd.config.files import bundled_config
from lbsgd.config.keys import flatten
from lbsgd.run.config import KEYS, default_config
from lbsgd.system.errors import ConfigError

Change = Callable[[ml_collections.ConfigDict, str], None]
Rows = Mapping[str, str | Change]

# For a recipe that began as another and chose other options: the decays of a step decay, say, are
# nothing to a polynomial one.
reset_unused = functools.partial(unused.reset_unused, keys=KEYS)


def sibling(file: str, name: str, arg: str = "") -> ml_collections.ConfigDict:
    """Reads the config of another recipe in the same folder, or else of lbsgd's own, to change it.

    Args:
      file: `__file__` of the one that asks.
      name: of the other, without ".py".
      arg: its argument.

    Raises:
      ConfigError: there is none.
    """
    path = pathlib.Path(os.path.abspath(file)).with_name(f"{name}.py")
    return _read(path if path.is_file() else bundled_config(name), arg)


def recipe(name: str, arg: str = "") -> ml_collections.ConfigDict:
    """Reads the config of a recipe that lbsgd brings, wherever it is installed.

        config = recipe("imagenet_goyal", "batch=256")

    Args:
      name: as `lbsgd configs` lists it.
      arg: its variant.

    Raises:
      ConfigError: there is none of this name, or no such variant.
    """
    return _read(bundled_config(name), arg)


def _read(path: pathlib.Path, arg: str) -> ml_collections.ConfigDict:
    config: ml_collections.ConfigDict = runpy.run_path(str(path))["get_config"](arg)
    return config


def changes(base: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> dict[str, Any]:
    """Lists what another recipe has otherwise, as a row of a sweep overrides it.

    Returns:
      the values of `other` that are not those of `base`, by dotted key.
    """
    before = dict(flatten(base))
    return {key: value for key, value in flatten(other) if value != before[key]}


def select(config: ml_collections.ConfigDict, arg: str, rows: Rows) -> ml_collections.ConfigDict:
    """Changes a config by the parts of `arg` that commas separate, one after the other.

    Args:
      rows: what a part may be: "name=" with the key that its value is for, or with what to do with
        the value; "word" (or "name=value") with what to do.

    Raises:
      ConfigError: an unknown part, or a value of the wrong type.
    """
    for part in filter(None, arg.split(",")):
        name, sign, value = part.partition("=")
        change = rows.get(part) or rows.get(name + sign)
        if change is None or (sign and not value):
            known = ", ".join(f"{row}..." if row.endswith("=") else row for row in rows)
            raise ConfigError(f"no variant {part!r}; known: {known}")
        try:
            if isinstance(change, str):
                kind = type(dict(flatten(config))[change])
                config.update_from_flattened_dict({change: kind(value)})
            else:
                change(config, value)
        except ValueError as error:
            raise ConfigError(f"variant {part!r}: {error}") from error
    return config


def imagenet_resnet50() -> ml_collections.ConfigDict:
    """Sets data, network and precision of ImageNet recipes; lengths and rates are the recipe's.

    Augmentation is that of Goyal et al. 2017, random area and aspect, and flip.
    """
    config = default_config()
    config.accumulation_steps = 0
    config.dtype = "bfloat16"
    config.model.name = "resnet50"
    config.data.source = "tfds"
    config.data.tfds_name = "imagenet2012"
    config.data.crop = "inception"
    config.data.flip = True
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.evaluation.every_epochs = 1.0
    config.checkpoint.every_epochs = 1.0
    return config


def set_epochs(config: ml_collections.ConfigDict, value: str) -> None:
    """Sets another length in epochs, and moves the decays in proportion; the warmup stays."""
    factor = float(value) / config.total_epochs
    config.total_epochs = float(value)
    if config.learning_rate.decay == "steps":
        decays = config.learning_rate.decay_epochs
        config.learning_rate.decay_epochs = tuple(round(epoch * factor, 6) for epoch in decays)


def set_smoke(config: ml_collections.ConfigDict, _: str = "") -> None:
    """Cuts a run down to three updates on a few small random images, for a test on a CPU.

    Where the batch is to grow, it does so after the second.
    """
    growth = config.batch_growth
    if growth.in_place_of_decay or growth.sizes:
        growth.update({"sizes": (128,), "at_steps": (2,), "at_epochs": ()})
        growth.update({"in_place_of_decay": False, "largest": 0})
    config.batch_size = 64
    config.worker_batch_size = 8
    config.accumulation_steps = 1
    config.batch_norm.precise_examples = min(config.batch_norm.precise_examples, 64)
    config.total_epochs = 0.0
    config.total_steps = 3
    config.model.width = 0.125
    config.learning_rate.reference_batch_size = 16
    config.learning_rate.warmup_epochs = 0.0
    config.learning_rate.warmup_steps = 2
    config.data.source = "synthetic"
    config.data.image_size = 32
    config.data.synthetic_examples = 256
    config.data.synthetic_validation_examples = 40
    config.log.every_steps = 1
    reset_unused(config)
