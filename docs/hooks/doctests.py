"""Shows examples in docstrings as code: lines that begin with >>>, and what Python answers."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n(?:(?!\n).+\n?)*)", flags=re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences doctests, which Markdown would take for quotations."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Fences those of a docstring."""
        if obj.docstring and ">>> " in obj.docstring.value:
            fenced = _EXAMPLE.sub(_fence, obj.docstring.value + "\n")
            obj.docstring.value = fenced


def _fence(example: re.Match[str]) -> str:
    return f"\n```pycon\n{example.group().rstrip()}\n```\n"
