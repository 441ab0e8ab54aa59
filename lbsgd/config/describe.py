"""Describes keys for people, a paragraph each."""

import textwrap
from typing import Any

from lbsgd.config.keys import MOST_OF_ANY, Key, Keys, Must, On, Wanted
from lbsgd.system.text import is_number

COLUMNS = 100


def paragraphs(keys: Keys) -> list[str]:
    """Writes `key=default  meaning [unit; choices; what it is used with]`, wrapped at `COLUMNS`."""
    lines: list[str] = []
    for name, key in keys.items():
        default = f"{name}={key.default}".replace(" ", "\0")  # so that no line ends within it
        paragraph = f"{default}  {key.meaning}{_limits(key)}"
        wrapped = textwrap.wrap(
            paragraph,
            COLUMNS,
            initial_indent="  ",
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [line.replace("\0", " ") for line in wrapped]
    return lines


def _limits(key: Key) -> str:
    """Says what is known of the values, in brackets behind a space; "" if that is nothing."""
    used = used_with(key)
    with_it = f"used with {used}" if used else ""
    text = "; ".join(filter(None, (key.unit, _one_of(choices_of(key)), with_it)))
    return f" [{text}]" if text else ""


def choices_of(key: Key) -> tuple[str, ...]:
    """Lists the words that a key may be; () where there is no list of them."""
    return (*key.choices, '"package.module:name"') if key.dotted else key.choices


def used_with(key: Key) -> str:
    """Says which values of other keys a key is used with; "" where it always is."""
    options = list(map(_option, key.used_with, key.used_with.values()))
    if key.used_if:
        options.append(key.used_if.words.partition(", which")[0])
    return ", and ".join(options)


def bounds(key: Key) -> str:
    """Says which numbers a key may have, or what else is checked of it; "" where nothing is."""
    found = []
    if key.fraction:
        found.append("at least 0, and below 1")
    elif key.positive:
        found.append("above 0")
    elif _holds_numbers(key.default) and not (key.negative or key.own_check):
        found.append("at least 0")
    if key.most < MOST_OF_ANY:
        found.append(f"at most {key.most:,}")
    if isinstance(key.check, Must):
        found.append(f"must {key.check.words}")
    return "; ".join(found)


def _holds_numbers(value: Any) -> bool:
    """Tells whether a value is a number, or a tuple of them."""
    return (
        all(map(is_number, value)) and bool(value) if isinstance(value, tuple) else is_number(value)
    )


def _one_of(words: tuple[str, ...]) -> str:
    *most, last = words or ("",)
    return f"{', '.join(most)} or {last}" if most else last


def _option(key: str, wanted: Wanted) -> str:
    return key if isinstance(wanted, On) else f"{key}={_one_of(tuple(map(str, wanted)))}"
