"""Text for people: plurals, short lines, and where two things differ."""

import numbers
import os
from collections.abc import Mapping
from typing import Any

# Of a value that is shown, and of a line of somebody else's.
LONGEST_VALUE, LONGEST_LINE = 80, 300
# More differences than these do not help.
MOST_DIFFERENCES = 8


def noun(number: int, singular: str, plural: str = "") -> str:
    """The noun that goes with a number of things: "lane" or "lanes".

    Args:
      plural: where that is not the singular and an s.
    """
    return singular if number == 1 else plural or singular + "s"


def counted(number: float, singular: str, plural: str = "", form: str = ",") -> str:
    """The number and its noun: "1 lane", "2 lanes", "1,000 lanes".

    Args:
      plural: as in `noun`.
      form: of the number, as `format` takes it.
    """
    text = format(number, form)
    return f"{text} {noun(1 if text == '1' else 2, singular, plural)}"


def shorten(text: str, longest: int) -> str:
    """Cuts a text off, with an ellipsis, where it is longer than so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shown(value: Any) -> str:
    """The value as it is written, in one short line."""
    try:
        text = str(value) if _is_number(value) else repr(value)
    except ValueError:  # Python writes no numbers of more than 4300 digits
        return "a number of thousands of digits"
    return shorten(" ".join(text.split()), LONGEST_VALUE)


def printable(text: str) -> str:
    """Puts marks in place of what no terminal should be sent, which a name or a file may hold."""
    text = os.fsencode(text).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """Makes a short printable line of any text."""
    return shorten(printable(" ".join(text.split())), LONGEST_LINE)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Lists where two trees of values differ: "a.b (1 there, 2 here), ..."; "" if nowhere."""
    one, other = _flat(there), _flat(here)
    keys = [
        key
        for key in sorted(one.keys() | other.keys())
        # As text, for NaN is not itself.
        if one.get(key) != other.get(key) and repr(one.get(key)) != repr(other.get(key))
    ]
    parts = [
        f"{key} ({_value(one.get(key))} there, {_value(other.get(key))} here)"
        for key in keys[:MOST_DIFFERENCES]
    ]
    more = len(keys) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def _value(value: Any) -> str:
    return shorten(printable(str(value)), LONGEST_VALUE)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
