"""The flags of `lbsgd train`: a config file, or the workdir of a run; and keys of the config."""

import ast
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import flatten, options_key, value_of
from lbsgd.run import config as config_lib
from lbsgd.run.config_file import ConfigFile, explain_file, split_variant
from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError
from lbsgd.system.files import AnyPath, user_path
from lbsgd.system.text import short_repr

PROGRAM = "lbsgd train"
NO_CONFIG = (
    "no config; give one with --config digits, or the workdir of a run with --workdir to resume it"
)


class TrainFlags(NamedTuple):
    """Holds what a command line of `lbsgd train` says.

    Attributes:
      config: of the file, or of the run in the workdir, with `--config.key=value` on top of it;
        to be resolved.
      workdir: of the run; by default runs/ and the name of the config file.
      explain: whether to print how the run is resolved, and train nothing.
      coordinator: host:port of process 0; None where JAX finds out, as also the next two.
      sweep: says that the file has a sweep too; "" where it has none.
    """

    config: ml_collections.ConfigDict
    workdir: AnyPath
    explain: bool
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    sweep: str


class _Flag(NamedTuple):
    name: str
    kind: str
    value: str
    help: str


_FLAGS = (
    _Flag(
        "workdir",
        "string",
        "DIR",
        "the run's folder, or gs://, s3://; by default runs/NAME of the config",
    ),
    _Flag("explain", "boolean", "", "print how the run is resolved, and train nothing"),
    _Flag(
        "coordinator", "string", "HOST:PORT", "the address of process 0, the same for all processes"
    ),
    _Flag("num_processes", "integer", "N", "how many processes there are"),
    _Flag("process_id", "integer", "I", "the index of this process, from 0 on"),
)
_CONFIG_HELP = (
    ("--config CONFIG[:VARIANT]", "a config file, or a name that `lbsgd configs` lists"),
    ("--config.KEY=VALUE", "set a key of the config"),
)
_ABOUT = """\
usage: lbsgd train --config CONFIG[:VARIANT] [--config.KEY=VALUE ...] [--workdir DIR] [FLAG ...]
       lbsgd train --workdir DIR [--config.KEY=VALUE ...] [FLAG ...]

Trains a run, from the newest checkpoint in its workdir if there is one: the same command resumes
it, and so does --workdir alone, with the config that the run was last started with.
"""


def help_text() -> str:
    """Describes the flags, and the config keys by room."""
    rows = [*_CONFIG_HELP, *((f"--{f.name} {f.value}".rstrip(), f.help) for f in _FLAGS)]
    lines = [f"  {flag:<27}{text}" for flag, text in rows]
    return "\n".join(
        [
            _ABOUT,
            "flags:",
            *lines,
            "",
            "config keys, each set as --config.KEY=VALUE:",
            "",
            *config_lib.describe_keys(),
        ]
    )


def parse(argv: Sequence[str]) -> TrainFlags:
    """Reads a command line, and the config that it names.

    Args:
      argv: without the program's name.

    Raises:
      ConfigError: a mistake in the flags, in the config file, or in what the workdir holds.
    """
    logging.set_verbosity(logging.ERROR)  # absl warns of mistakes that are said here
    _check_keys(argv)
    opened = None
    try:
        file, workdir = _parse_own(argv)
        opened = ConfigFile(file) if file is not None else None
        config = opened.config() if opened else stored_config(_at(workdir))
        values = _parse_all(_without_config(argv), config)
    except flags.Error as error:
        raise ConfigError(_explain_flag(error)) from error
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        # Of keys that are set on what a file has made something else of.
        where = opened.path if opened else Workdir(_at(workdir)).config
        raise ConfigError(explain_file(error, where)) from error
    own: dict[str, Any] = {name: values[name].value for name in TrainFlags._fields[2:-1]}
    folder = _at(workdir) if workdir else pathlib.Path("runs") / split_variant(file or "")[0].stem
    sweep = opened.say_sweep() if opened else ""
    return TrainFlags(values.config, folder, **own, sweep=sweep)


def _check_keys(argv: Sequence[str]) -> None:
    """Names the nearest known key where absl would print its usage."""
    for arg in argv:
        match = _OF_KEY.match(arg)
        if match:
            config_lib.check_is_key(match.group(1))


def keys_of(argv: Sequence[str]) -> list[str]:
    """Lists the keys that flags such as `--config.key=value` set."""
    return [match.group(1) for match in map(_OF_KEY.match, argv) if match]


_OF_KEY = re.compile(r"--?(?:no)?config\.([^=]+)")


def _define(values: flags.FlagValues) -> flags.FlagValues:
    define: dict[str, Any] = {
        "string": flags.DEFINE_string,
        "boolean": flags.DEFINE_boolean,
        "integer": flags.DEFINE_integer,
    }
    for flag in _FLAGS:
        default = False if flag.kind == "boolean" else None
        define[flag.kind](flag.name, default, flag.help, flag_values=values)
    return values


def _parse_own(argv: Sequence[str]) -> tuple[str | None, str | None]:
    """Reads the config file and the workdir that are given; None for one that is not.

    Raises:
      ConfigError: neither is.
      flags.Error: another mistake.
    """
    values = _define(flags.FlagValues())
    flags.DEFINE_string("config", None, "", flag_values=values)
    values.set_gnu_getopt()  # for a value may stand apart from its key
    values([PROGRAM, *(arg for arg in argv if not _OF_KEY.match(arg))])
    if values.config is None and not values.workdir:
        raise ConfigError(NO_CONFIG)
    return values.config, values.workdir


def set_keys(config: ml_collections.ConfigDict, argv: Sequence[str]) -> ml_collections.ConfigDict:
    """Sets keys on a config, as `--config.key=value` on a command line does.

    Args:
      argv: such flags, and no others.

    Raises:
      ConfigError: a mistake in them.
    """
    _check_keys(argv)
    try:
        return _parse_all(argv, config).config
    except flags.Error as error:
        raise ConfigError(_explain_flag(error)) from error


def _without_config(argv: Sequence[str]) -> list[str]:
    """Leaves out the config file, for which the config that it holds stands in."""
    words, rest = iter(argv), []
    for word in words:
        if re.fullmatch("--?config", word):
            next(words, None)
        elif not re.match("--?config=", word):
            rest.append(word)
    return rest


def _parse_all(argv: Sequence[str], config: ml_collections.ConfigDict) -> flags.FlagValues:
    """Parses the flags, and sets their keys on a config."""
    words = [PROGRAM, *_set_options(_with_tuples_of_names(argv), config)]
    values = _define(flags.FlagValues())
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
    rest = values(words)
    if len(rest) > 1:
        raise ConfigError(f"unexpected argument {rest[1]!r}; flags start with --")
    return values


def _set_options(argv: Sequence[str], config: ml_collections.ConfigDict) -> list[str]:
    """Sets options, whose names no config declares, and leaves the other flags."""
    words, rest = iter(argv), []
    for word in words:
        match = _OF_KEY.match(word)
        if not match or not options_key(match.group(1)):
            rest.append(word)
            continue
        value = word[match.end() + 1 :] if "=" in word else next(words, "")
        _set_option(config, match.group(1), literal(value))
    return rest


def _set_option(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets an option, or one within options of several names, which need not be there."""
    options = options_key(key)
    *groups, leaf = key.removeprefix(f"{options}.").split(".")
    with value_of(config, options).unlocked() as part:
        for group in groups:
            if group not in part:
                part[group] = ml_collections.ConfigDict()
            part = part[group]
            if not isinstance(part, ml_collections.ConfigDict):
                raise ConfigError(f"{key}: {group} is {short_repr(part)}, which holds no options")
        with part.ignore_type():
            part[leaf] = value


def _with_tuples_of_names(argv: Sequence[str]) -> list[str]:
    """Writes names with commas between them, as `--config.log.sinks=clu,mine:Sink`, as a tuple."""
    words, rest = iter(argv), []
    for word in words:
        flag, equals, value = word.partition("=")
        key = config_lib.KEYS.get(flag.lstrip("-").removeprefix("config."))
        if key and key.dotted and isinstance(key.default, tuple):
            value = value if equals else next(words, "")
            if not value.startswith(("(", "[")):
                value = repr(tuple(filter(None, value.split(","))))
            word = f"{flag}={value}"
        rest.append(word)
    return rest


def literal(text: str) -> Any:
    """Reads a value as Python writes it; what it does not know is a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def stored_config(folder: AnyPath) -> ml_collections.ConfigDict:
    """Reads the config that the run in a folder was last started with, to start it again.

    Raises:
      ConfigError: there is none, or it is not one of this version, or names code.
    """
    return _read_stored(folder, _check_names_no_code)


def described_config(folder: AnyPath) -> ml_collections.ConfigDict:
    """Reads the config that the run in a folder was last started with, to compare it with others.

    Raises:
      ConfigError: there is none, or it is not one of this version.
    """
    return _read_stored(folder, lambda key, value: None)


def _read_stored(folder: AnyPath, check: Callable[[str, Any], None]) -> ml_collections.ConfigDict:
    workdir = Workdir(folder)
    found = workdir.read_config()
    try:
        return config_of(dict(flatten(ml_collections.ConfigDict(found))), check)
    except ConfigError as error:
        raise ConfigError(
            f"{workdir.config}: {error}; give the config again with --config"
        ) from error


def config_of(
    values: Mapping[str, Any], check: Callable[[str, Any], None] = lambda key, value: None
) -> ml_collections.ConfigDict:
    """Makes a config of values by dotted key, as JSON has them; the others are at their defaults.

    Args:
      check: takes each key and value, and raises ConfigError for those that are not wanted.

    Raises:
      ConfigError: one is no key of this version, or has another type.
    """
    config = config_lib.default_config()
    known = dict(flatten(config))
    for key, value in values.items():
        if key not in known:
            config_lib.check_is_key(key)
        value = _with_tuples(value)
        set_key(config, key, value)
        check(key, value)
    config_lib.forget_what_follows(config)
    return config


def _check_names_no_code(key: str, value: Any) -> None:
    """Raises ConfigError where what is read from a workdir names code: who wrote it chose that."""
    names = value if isinstance(value, tuple) else (value,)
    if config_lib.KEYS[key].dotted and any(is_dotted(str(name)) for name in names):
        raise ConfigError(f"it names code, {key}={value!r}, and no workdir chooses what is run")


def _with_tuples(value: Any) -> Any:
    """Makes tuples of lists, which JSON has where a config has tuples."""
    if isinstance(value, dict):
        return {name: _with_tuples(inside) for name, inside in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, (list, tuple)) else value


def set_key(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets a known key, or an option.

    Raises:
      ConfigError: the value has another type.
    """
    if options_key(key):
        _set_option(config, key, value)
        return
    try:
        config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{key} must be {config_lib.kind_of(key)}, not {short_repr(value)}"
        ) from error


def _at(workdir: str | None) -> AnyPath:
    return user_path(workdir or "")


def _explain_flag(error: flags.Error) -> str:
    """Explains a mistake that absl found, in one line."""
    text = str(error)
    wrong = re.match(r"flag --(?:no)?config\.([\w.]+)=(.*?): ", text)
    if wrong:
        kind = config_lib.kind_of(wrong.group(1))
        return f"{wrong.group(1)} must be {kind}, not {wrong.group(2)!r}"
    return text
