"""Declares the keys of a config: each room says in a `keys.py` what its own are.

KEYS: Keys = {
    "optimizer.name": Key("sgd", "The optimizer.", choices=("sgd", "lars", "lamb")),
    "optimizer.trust_coefficient": Key(
        0.001, "eta of LARS.", positive=True, used_with={"optimizer.name": ("lars",)}
    ),
    **times("total", "The length of training."),
}
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# Far more than any run needs; what is computed from such numbers still fits in 64 bits, and in
# float32.
MOST_OF_ANY = 10**15

# Endings of the keys of a time.
UNITS = ("_epochs", "_steps", "_examples")

Values = Mapping[str, Any]


class On:
    """Contains all values but 0, False, "" and (): for `used_with`, that the other key is on."""

    def __contains__(self, value: object) -> bool:
        return bool(value)


ON = On()
Wanted = tuple[Any, ...] | On


class Condition(NamedTuple):
    """States a condition that takes more than one other key.

    Attributes:
      words: what it asks for, as people read it behind "used with".
      holds: tells of the values of all keys, by dotted key, whether it holds.
    """

    words: str
    holds: Callable[[Values], bool]


def any_time(*names: str) -> Condition:
    """States that at least one of the times of these names is given."""
    return Condition(
        " or ".join(f"{name}_*" for name in names) + f", which {'are' if names[1:] else 'is'} off",
        lambda values: any(values[name + unit] for name in names for unit in UNITS),
    )


@dataclasses.dataclass(frozen=True)
class Key:
    """Declares a key of the config: its default, what it means, and which values it may have.

    Attributes:
      default: whose type is that of all its values.
      meaning: a sentence or two.
      unit: of its numbers: "examples", "MiB".
      choices: the words it may be; () where there is no list of them.
      dotted: it may also be "package.module:name", or hold such names beside its choices.
      positive: it is above 0.
      fraction: it is at least 0, and below 1.
      negative: its numbers may be below 0.
      most: its numbers are no larger.
      check: raises ConfigError where a value is wrong in another way; takes the key and the value.
      own_check: `check` is all there is to check.
      machine: it says where and how a run is computed, not what: it may differ when a run resumes.
      used_with: the values that other keys must have for this one to be used, all of them.
      used_if: what must hold besides.
      follows: what its default stands for, where that follows from other values.
    """

    default: Any
    meaning: str
    _: dataclasses.KW_ONLY
    unit: str = ""
    choices: tuple[str, ...] = ()
    dotted: bool = False
    positive: bool = False
    fraction: bool = False
    negative: bool = False
    most: float = MOST_OF_ANY
    check: Callable[[str, Any], None] | None = None
    own_check: bool = False
    machine: bool = False
    used_with: Mapping[str, Wanted] = dataclasses.field(default_factory=dict)
    used_if: Condition | None = None
    follows: Callable[[Values], Any] | None = None


Keys = Mapping[str, Key]


def must(words: str, holds: Callable[[Any], bool]) -> Callable[[str, Any], None]:
    """Makes a `check`: the value must, as in "must increase"."""

    def check(key: str, value: Any) -> None:
        if not holds(value):
            raise ConfigError(f"{key} must {words}, not {short_repr(value)}")

    return check


def pair_within(least: float, most: float) -> Callable[[str, Any], None]:
    """Makes a `check` of a least and a greatest number, which lie within a range."""
    return must(
        f"be a least and a greatest number, from {least:g} to {most:g}",
        lambda pair: len(pair) == 2 and least <= pair[0] <= pair[1] <= most,
    )


def whole(numbers: Sequence[Any]) -> bool:
    """Tells whether all the numbers are whole, in type too."""
    return all(isinstance(number, int) for number in numbers)


def times(name: str, meaning: str, epochs: float = 0.0, **of_each: Any) -> dict[str, Key]:
    """Declares the three keys of a time: `{name}_epochs`, `_steps`, `_examples`; one is set.

    Each says what the time is: people search for the one they want to set.

    Args:
      epochs: the default.
      of_each: what else the three declare.
    """
    instead = f"{meaning} Set instead of {name}_epochs, which is then 0."
    return {
        f"{name}_epochs": Key(epochs, meaning, unit="epochs", **of_each),
        f"{name}_steps": Key(0, instead, unit="updates", **of_each),
        f"{name}_examples": Key(0, instead, unit="examples", **of_each),
    }


def names_of_times(keys: Keys) -> list[str]:
    """Lists the names of the times among the keys: "total", "learning_rate.warmup", ..."""
    names = [key.removesuffix("_epochs") for key in keys if key.endswith("_epochs")]
    return [name for name in names if f"{name}_steps" in keys and f"{name}_examples" in keys]


def is_options(key: str) -> bool:
    """Tells whether a key holds values by name, of names that nobody declares.

    Such are the options of someone's code, and multipliers of what someone's network has.
    """
    return key.endswith(("options", "multipliers"))


def options_key(key: str) -> str:
    """Returns the key of options that a dotted key lies in: "model.options"; "" if it does not."""
    parts = key.split(".")
    inside = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next(filter(is_options, inside), "")


def default_tree(keys: Keys) -> ml_collections.ConfigDict:
    """Makes a config of the keys at their defaults; locked, so that others cannot be added.

    Options alone can be.
    """
    tree: dict[str, Any] = {}
    for name, key in keys.items():
        *groups, leaf = name.split(".")
        part = tree
        for group in groups:
            part = part.setdefault(group, {})
        part[leaf] = key.default
    config = ml_collections.ConfigDict(tree).lock()
    for name in filter(is_options, keys):
        value_of(config, name).unlock()
    return config


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields pairs of dotted key and value, in order of the keys; options are one value, a dict."""
    for key in sorted(config):
        value = config[key]
        group = isinstance(value, ml_collections.ConfigDict)
        if group and is_options(key):
            yield prefix + key, value.to_dict()
        elif group and len(value):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def value_of(config: ml_collections.ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key that there is."""
    for part in key.split("."):
        config = config[part]
    return config


def set_value(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key that there is."""
    *groups, leaf = key.split(".")
    for group in groups:
        config = config[group]
    config[leaf] = value
