"""Finds the sinks of metrics that a config names: lbsgd's own, and those of users."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from lbsgd.config.dotted import Named, is_dotted, load
from lbsgd.config.keys import Values
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import short_repr

# lbsgd's own have the same form as those of users: a factory, found by its dotted name.
OWN = {
    name: f"lbsgd.run.record.sinks.{name}:open_sink"
    for name in ("tensorboard", "clu", "wandb", "mlflow")
}
# What a factory is called with, of the arguments that it takes.
OFFERED = ("folder", "config", "start")


class NamedSink(NamedTuple):
    """Holds a sink that a config names.

    Attributes:
      factory: makes it.
      options: which the config sets for it.
      own: whether it is lbsgd's.
    """

    factory: Named
    options: Mapping[str, Any]
    own: bool


def name_of(sink: str) -> str:
    """Returns what the options of a sink go by: for "package.module:Sink" that is "Sink"."""
    return sink.rpartition(":")[2].rpartition(".")[2]


def check_sinks(values: Values) -> None:
    """Checks that each sink is there once, and that there is one for all options.

    Args:
      values: of all keys, by dotted key.

    Raises:
      ConfigError: one is there twice, or options are for none, or are not by name.
    """
    names = [name_of(sink) for sink in values["log.sinks"]]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"log.sinks has {twice[0]!r} twice; options could not tell them apart")
    for name, options in values["log.sink_options"].items():
        if name not in names:
            known = f"there {'are' if names[1:] else 'is'} {', '.join(names)}" if names else "none"
            raise ConfigError(
                f"log.sink_options.{name} is for no sink in log.sinks ({known}); add it there, or "
                "take its options out (log.sink_options={} has none)"
            )
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"log.sink_options.{name} must hold options by name, not {short_repr(options)}"
            )


def load_sinks(config: ml_collections.ConfigDict) -> list[NamedSink]:
    """Loads the factories of the sinks of a resolved config.

    Raises:
      ConfigError: there is no such factory, it does not take its options, or asks for more.
    """
    options = config.log.sink_options.to_dict()
    return [_load(sink, options.get(name_of(sink), {})) for sink in config.log.sinks]


def _load(sink: str, options: Mapping[str, Any]) -> NamedSink:
    factory = load("log.sinks", OWN.get(sink, sink))
    factory = factory._replace(name=sink, options=f"log.sink_options.{name_of(sink)}")
    factory.arguments(options, **dict.fromkeys(OFFERED))
    return NamedSink(factory, options, own=sink in OWN)


def explain_sinks(config: ml_collections.ConfigDict) -> list[str]:
    """Names the sinks that are users' own, a line for each, with the file that they are of."""
    users = [load("log.sinks", sink) for sink in config.log.sinks if is_dotted(sink)]
    return [f"code: {factory.describe()}" for factory in users]
