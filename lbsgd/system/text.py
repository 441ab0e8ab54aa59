"""Text for messages: plurals, shortened values, differences between two trees."""

import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

# Characters of a value in a message, and of a message that another library wrote.
LONGEST_VALUE, LONGEST_LINE = 80, 300
# More differences than this do not help the reader.
MOST_DIFFERENCES = 8


def noun(number: int, singular: str, plural: str = "") -> str:
    """Returns the singular or the plural of a noun for a number of things: "lane" or "lanes".

    Args:
      plural: by default the singular with an s.
    """
    return singular if number == 1 else plural or singular + "s"


def decimal(number: float) -> str:
    """Formats a number with four significant digits, a large one whole: "89.97", "1,234"."""
    return f"{number:,.4g}" if abs(number) < 1000 else f"{number:,.0f}"


def pluralize(number: float, singular: str, plural: str = "") -> str:
    """Formats a number with its noun: "1 lane", "1,000 lanes", "89.97 epochs".

    Args:
      plural: by default the singular with an s.
    """
    text = decimal(number) if isinstance(number, float) else f"{number:,}"
    return f"{text} {noun(1 if text == '1' else 2, singular, plural)}"


def enumerate_numbers(numbers: Sequence[int]) -> str:
    """Lists whole numbers: "168, 337 and 1,449"."""
    *most, last = (f"{number:,}" for number in numbers)
    return f"{', '.join(most)} and {last}" if most else last


def shorten(text: str, longest: int) -> str:
    """Truncates a text to `longest` characters, with an ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def short_repr(value: Any) -> str:
    """Formats a value as Python writes it, in one short line."""
    try:
        text = str(value) if is_number(value) else repr(value)
    except ValueError:  # Python refuses to write numbers of more than 4300 digits
        return "a number of thousands of digits"
    return shorten(" ".join(text.split()), LONGEST_VALUE)


def printable(text: str) -> str:
    """Replaces characters that no terminal should be sent; file names may contain them."""
    text = os.fsencode(text).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """Turns any text into one short printable line."""
    return shorten(printable(" ".join(text.split())), LONGEST_LINE)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Lists where two trees of values differ: "a.b (1 there, 2 here), ..."; "" if nowhere."""
    one, other = _flat(there), _flat(here)
    keys = [
        key
        for key in sorted(one.keys() | other.keys())
        # Also as text, because NaN does not equal itself.
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
    """Flattens nested dicts into one with dotted keys."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def is_number(value: Any) -> bool:
    """Tells whether a value is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
