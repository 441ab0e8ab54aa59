"""The arguments that say which network is used, and how: those of evaluate, predict and export."""

import argparse
from collections.abc import Sequence
from typing import Any

from lbsgd.config.keys import value_of
from lbsgd.run.config import KEYS, default_config
from lbsgd.run.flags import keys_of, set_keys
from lbsgd.system.command_line import Parser


def add_network(parser: Parser) -> None:
    """Adds the run, and which of its networks."""
    parser.add_argument(
        "run",
        help="the workdir of a run, its folder of checkpoints, or one checkpoint; on a disk or in "
        "a bucket",
    )
    parser.add_argument(
        "--checkpoint",
        default="newest",
        metavar="WHICH",
        help="newest, best (by the evaluations in metrics.jsonl), or an update index",
    )
    parser.add_argument(
        "--weights",
        default="raw",
        choices=["raw", "average"],
        help="the weights themselves, or their moving average",
    )
    parser.add_argument(
        "--allow_code",
        action="store_true",
        help="import what the run names as package.module:name, if you trust it",
    )


def add_statistics(parser: Parser, default: str, default_is: str) -> None:
    """Adds which statistics batch norm normalizes by.

    Args:
      default_is: what the default is, as people read it.
    """
    parser.add_argument(
        "--statistics",
        default=default,
        choices=["running", "precise"],
        help="batch norm's running averages, or precise ones of the training set; by default "
        f"{default_is}",
    )


def add_flip(parser: Parser) -> None:
    """Adds the test-time flip."""
    parser.add_argument(
        "--flip",
        action="store_true",
        help="average the probabilities of each image and its mirror image",
    )


def add_keys(parser: Parser) -> None:
    """Adds keys of the config to the help; `split_keys` reads them."""
    parser.add_argument(
        "--config.KEY=VALUE",
        dest="_",
        action="store_true",
        help="set a key of the config, such as data.dir, devices or evaluation.batch_size",
    )


def split_keys(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits `--config.key=value` from the other words.

    Returns:
      the other words, and values by dotted key.

    Raises:
      ConfigError: a key is not known, or its value has another type.
    """
    words, others, flags = iter(argv), list[str](), list[str]()
    for word in words:
        (key,) = keys_of([word]) or [""]
        if not key or key == "KEY":
            others.append(word)
            continue
        flags.append(word)
        boolean = key in KEYS and isinstance(KEYS[key].default, bool)
        if "=" not in word and not boolean:
            flags += [value] if (value := next(words, None)) is not None else []
    if not flags:
        return others, {}
    config = set_keys(default_config(), flags)
    return others, {key: value_of(config, key) for key in keys_of(flags)}


def wanted_of(args: argparse.Namespace) -> dict[str, Any]:
    """Collects the arguments of `add_network` and `add_statistics`, as `lbsgd.load` takes them."""
    names = ("checkpoint", "weights", "statistics", "allow_code")
    return {name: getattr(args, name) for name in names}
