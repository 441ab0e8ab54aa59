"""Writes the reference of the commands from what they say with `--help`."""

import contextlib
import io
import os
import re
from unittest import mock

from lbsgd.main import COMMANDS, help_text

# The keys of the config have a page of their own.
_KEYS = re.compile(r"\nconfig keys.*", flags=re.DOTALL)
_ACTIONS = re.compile(r"^  \{([\w,]+)\} ", flags=re.MULTILINE)


def page() -> str:
    """Writes the help of all commands."""
    parts = [f"```text\n{help_text()}\n```"]
    for name in COMMANDS:
        parts.append(f"## lbsgd {name} {{ #{name} }}")
        text = _help(name)
        parts.append(_section(text))
        found = _ACTIONS.search(text)
        for action in found.group(1).split(",") if found else ():
            # Where actions share a parser they say the same.
            if (of_action := _help(name, action)) != text:
                parts += [f"### lbsgd {name} {action} {{ #{name}-{action} }}", _section(of_action)]
    return "\n\n".join(parts)


def _help(*words: str) -> str:
    """Asks a command for its help, 100 columns wide."""
    name, *rest = words
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        COMMANDS[name].main([*rest, "--help"])
    return out.getvalue()


def _section(text: str) -> str:
    keys = _KEYS.search(text)
    more = "\n\nThe keys of the config: [Configuration](configuration.md)." if keys else ""
    return f"```text\n{_KEYS.sub('', text).rstrip()}\n```{more}"
