"""Describes keys for people, a paragraph each."""

import textwrap

from lbsgd.config.keys import Key, Keys, On, Wanted

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
    options = list(map(_option, key.used_with, key.used_with.values()))
    if key.used_if:
        options.append(key.used_if.words.partition(", which")[0])
    used_with = f"used with {', and '.join(options)}" if options else ""
    text = "; ".join(filter(None, (key.unit, _one_of(_choices(key)), used_with)))
    return f" [{text}]" if text else ""


def _choices(key: Key) -> tuple[str, ...]:
    return (*key.choices, '"package.module:name"') if key.dotted else key.choices


def _one_of(words: tuple[str, ...]) -> str:
    *most, last = words or ("",)
    return f"{', '.join(most)} or {last}" if most else last


def _option(key: str, wanted: Wanted) -> str:
    return key if isinstance(wanted, On) else f"{key}={_one_of(tuple(map(str, wanted)))}"
