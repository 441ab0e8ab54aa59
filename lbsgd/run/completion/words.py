"""Finds what may stand where the cursor is, from what --help says and from the keys of the config.

So a command says once which words it takes: `lbsgd COMMAND --help` is read here as people read it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lbsgd.config.command import read_recipe
from lbsgd.config.files import SWEEPS, bundled_configs, find_config
from lbsgd.run.config import KEYS
from lbsgd.system.errors import ConfigError

# Ask the shell for folders or files of its own.
FOLDERS, FILES = ":folders", ":files"
_FOLDERS = {"DIR", "FOLDER", "RUN", "WORKDIR"}
_FILES = {"FILE", "IMAGE", "OUT", "OUTPUT"}
_CONFIG = "CONFIG[:VARIANT]"
_KEY = "--config.KEY"
_OF_KEY = "--config."

# Takes the words of a command, as ["sweep", "run"], and returns its help.
HelpOf = Callable[[Sequence[str]], str]


class Asked(NamedTuple):
    """Holds which words a command takes.

    Attributes:
      flags: by name, with dashes, what stands for the value; "" for a switch.
      positionals: what stands for each of the other words; the last may be repeated.
      sweep: whether a config is asked for its sweep.
    """

    flags: dict[str, str]
    positionals: list[str]
    sweep: bool


def complete(words: Sequence[str], commands: Iterable[str], help_of: HelpOf) -> list[str]:
    """Lists what may stand for the last word.

    Args:
      words: those after `lbsgd`, up to the cursor.
      commands: the names of all.

    Returns:
      words, of which those that begin as the last one does are meant; `FOLDERS` or `FILES` besides
      where a path may stand.
    """
    *typed, current = words or [""]
    if "--" in typed:  # of the launcher, before the flags of a run
        typed = ["train", *typed[typed.index("--") + 1 :]]
    if typed in ([], ["help"]) and not current.startswith("-"):
        return [*commands]
    if not typed or typed[0].startswith("-"):
        typed = ["train", *typed]
    if typed[0] not in commands:
        return []
    asked, rest = _asked(typed, help_of)
    return _candidates(asked, rest, current)


def _asked(typed: Sequence[str], help_of: HelpOf) -> tuple[Asked, Sequence[str]]:
    """Reads the help of a command, or of a command within it, and which words are its own."""
    if len(typed) > 1 and not typed[1].startswith("-"):
        inner = help_of(typed[:2])
        if inner.startswith(f"usage: lbsgd {typed[0]} {typed[1]} "):
            return _read(inner), typed[2:]
    return _read(help_of(typed[:1])), typed[1:]


def _read(text: str) -> Asked:
    """Reads a help, in which each flag and word has a line of its own."""
    flags = re.findall(r"^  (?:-\w, )?(--[\w.]+)[ =]?(\S*(?: \S+)*)", text, flags=re.MULTILINE)
    _, _, after = text.partition("\npositional arguments:\n")
    section, _, _ = after.partition("\n\n")
    positionals = re.findall(r"^  (\S+)", section, flags=re.MULTILINE)
    found = dict(flags)
    # Where the description tells of it, and not the list.
    if f"{_KEY}=" in text:
        found[_KEY] = "VALUE"
    return Asked(found, positionals, sweep=text.startswith("usage: lbsgd sweep "))


def _candidates(asked: Asked, rest: Sequence[str], current: str) -> list[str]:
    flag, equals, _ = current.partition("=")
    if equals and flag.startswith("--"):
        found = _values(asked, flag, current[len(flag) + 1 :])
        return [each if each in (FOLDERS, FILES) else f"{flag}={each}" for each in found]
    if rest and _awaits_value(asked, rest[-1]):
        return _values(asked, rest[-1], current)
    if current.startswith("-"):
        keys = [f"{_OF_KEY}{key}=" for key in KEYS] if _KEY in asked.flags else []
        return [*(flag for flag in asked.flags if flag != _KEY), *keys]
    if not asked.positionals:
        return []
    index = min(_count_positionals(asked, rest), len(asked.positionals) - 1)
    shown = asked.positionals[index]
    return _of_kind(asked, shown, current) or [FILES] * (not shown.startswith("CONFIG"))


def _awaits_value(asked: Asked, word: str) -> bool:
    """Tells whether a word is a flag whose value is the next word."""
    if word.startswith(_OF_KEY):
        key = KEYS.get(word.removeprefix(_OF_KEY))
        return key is not None and not isinstance(key.default, bool)
    return bool(asked.flags.get(word))


def _count_positionals(asked: Asked, rest: Sequence[str]) -> int:
    before = ["", *rest]
    return sum(
        not word.startswith("-") and not _awaits_value(asked, last)
        for last, word in zip(before, rest)
    )


def _values(asked: Asked, flag: str, current: str) -> list[str]:
    """Lists the values of a flag, as far as they are words or paths."""
    if not flag.startswith(_OF_KEY):
        return _of_kind(asked, asked.flags.get(flag, ""), current)
    name = flag.removeprefix(_OF_KEY)
    if name not in KEYS:
        return []
    if name.rpartition(".")[2] == "dir":
        return [FOLDERS]
    return ["True", "False"] if isinstance(KEYS[name].default, bool) else [*KEYS[name].choices]


def _of_kind(asked: Asked, shown: str, current: str) -> list[str]:
    """Lists what may stand for a word that a help shows as {a,b}, DIR, CONFIG[:VARIANT], ..."""
    if shown.startswith("{"):
        return shown.strip("{}").split(",")
    if shown.startswith("CONFIG"):
        return _configs(asked, shown, current)
    kind = re.sub(r"S?( .*)?$", "", shown.upper())
    return [FOLDERS] if kind in _FOLDERS else [FILES] if kind in _FILES else []


def _configs(asked: Asked, shown: str, current: str) -> list[str]:
    """Lists configs by name, or the variants of one."""
    file, colon, variant = current.partition(":")
    if colon:
        before = current[: len(current) - len(variant.rpartition(",")[2])]
        return [before + each for each in _variants(file, sweep=asked.sweep)]
    names = [*bundled_configs()]
    if asked.sweep:
        names = [name.removeprefix(SWEEPS) for name in names if name.startswith(SWEEPS)]
    elif shown == _CONFIG:
        names = [name for name in names if not name.startswith(SWEEPS)]
    return [*names, FILES]


def _variants(file: str, *, sweep: bool) -> tuple[str, ...]:
    try:
        return read_recipe(find_config(file, sweep=sweep)).variants
    except ConfigError:
        return ()
