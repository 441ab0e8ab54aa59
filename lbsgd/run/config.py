"""The config of a run: the keys of all rooms, collected, and the check of what a user sets.

A config file starts from `default_config()` and sets what differs:

    def get_config(arg=""):
        config = default_config()
        config.batch_size = 1024
        return config

Times can be given in epochs, steps (updates) or examples: by one key of the three, the others 0.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import ml_collections

import lbsgd.data.keys
import lbsgd.models.keys
import lbsgd.optim.keys
import lbsgd.run.keys
import lbsgd.schedule.keys
import lbsgd.step.keys
import lbsgd.tasks.keys
import lbsgd.weights.keys
import lbsgd.workers.keys
from lbsgd.config import reading
from lbsgd.config.describe import paragraphs
from lbsgd.config.dotted import Named, is_dotted, load
from lbsgd.config.keys import Keys, default_tree, flatten, set_value
from lbsgd.config.times import check_times
from lbsgd.config.unused import reset_unused, without_effect
from lbsgd.config.values import check_values
from lbsgd.run.sink_names import check_sinks

# The keys by the room that declares them; what users set first comes first.
ROOMS: Mapping[str, Keys] = {
    "workers": lbsgd.workers.keys.KEYS,
    "schedule": lbsgd.schedule.keys.KEYS,
    "optim": lbsgd.optim.keys.KEYS,
    "models": lbsgd.models.keys.KEYS,
    "weights": lbsgd.weights.keys.KEYS,
    "tasks": lbsgd.tasks.keys.KEYS,
    "step": lbsgd.step.keys.KEYS,
    "data": lbsgd.data.keys.KEYS,
    "run": lbsgd.run.keys.KEYS,
}
KEYS: Keys = dict(itertools.chain.from_iterable(keys.items() for keys in ROOMS.values()))

nearest_key = functools.partial(reading.nearest_key, keys=KEYS)
check_is_key = functools.partial(reading.check_is_key, keys=KEYS)


def default_config() -> ml_collections.ConfigDict:
    """Makes a config of all keys, at the paper's values (Goyal et al. 2017, section 5.1)."""
    return default_tree(KEYS)


def kind_of(key: str) -> str:
    """Names the type of the known key `key`."""
    return type(KEYS[key].default).__name__


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Completes and checks a copy of a config, with the numbers that follow from others; frozen.

    Raises:
      ConfigError: an unknown key, a wrong type, or a value out of range.
    """
    resolved = reading.read(config, KEYS)
    values = dict(flatten(resolved))
    check_values(values, KEYS)
    lbsgd.models.keys.check_precision(values)
    check_times(resolved, KEYS)
    check_sinks(values)
    _set_what_follows(resolved)
    return ml_collections.FrozenConfigDict(resolved)


def _set_what_follows(config: ml_collections.ConfigDict) -> None:
    """Replaces defaults that stand for a number that follows from others."""
    values = dict(flatten(config))
    for name, key in KEYS.items():
        if key.follows and values[name] == key.default:
            set_value(config, name, key.follows(values))


def forget_what_follows(config: ml_collections.ConfigDict) -> None:
    """Sets numbers that follow from others back to the defaults that stand for them.

    A resolved config has them written out: with another of its keys they are to follow anew.
    """
    values = dict(flatten(config))
    for name, key in KEYS.items():
        if key.follows and values[name] == key.follows(values):
            set_value(config, name, key.default)


def run_keys(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Selects the keys and values that decide what the run computes, as JSON would have them."""
    return {key: _with_lists(value) for key, value in flatten(config) if not KEYS[key].machine}


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_lists(inside) for name, inside in value.items()}
    return list(map(_with_lists, value)) if isinstance(value, (list, tuple)) else value


def named_code(config: ml_collections.ConfigDict) -> list[Named]:
    """Loads whatever a config names as "package.module:name" that decides what the run computes.

    Raises:
      ConfigError: one cannot be loaded.
    """
    found = []
    for key, value in flatten(config):
        if KEYS[key].dotted and not KEYS[key].machine:
            names = value if isinstance(value, tuple) else (value,)
            found += [load(key, name) for name in names if is_dotted(name)]
    return found


def explain_unused(config: ml_collections.ConfigDict) -> list[str]:
    """Names the keys that were set and have no effect, in one line; none without such keys.

    Args:
      config: from `resolve`.
    """
    unused = without_effect(dict(flatten(config)), KEYS)
    return [f"without effect: {'; '.join(map(str, unused))}"] if unused else []


def in_effect(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Copies a resolved config with keys without effect at their defaults; frozen.

    What is computed from it cannot depend on them.
    """
    effective = ml_collections.ConfigDict(config)
    reset_unused(effective, KEYS)
    _set_what_follows(effective)
    return ml_collections.FrozenConfigDict(effective)


def describe_keys() -> list[str]:
    """Describes all keys by room: `key=default  meaning [unit; choices; what it is used with]`."""
    lines: list[str] = []
    for room, keys in ROOMS.items():
        lines += [f"{room}:", *paragraphs(keys), ""]
    return lines[:-1]
