"""The cards of docs/methods/: their snippets run and print what they say, and their keys exist."""

import contextlib
import io
import itertools
import pathlib
import re

import pytest

from lbsgd.run.config import KEYS

METHODS = pathlib.Path(__file__).parents[1] / "docs" / "methods"
CARDS = sorted(path.stem for path in METHODS.glob("*.md"))
SECTIONS = ["Equation", "Keys", "Snippet", "Interactions and warnings", "Our evidence", "Paper"]
_SNIPPET = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# What a snippet prints stands behind the call, or below a loop.
_SAID = re.compile(r"^(?:print\(.*\)  )?# (.*)$", flags=re.MULTILINE)


def text(card: str) -> str:
    return (METHODS / f"{card}.md").read_text()


@pytest.mark.parametrize("card", CARDS)
def test_a_card_has_its_parts(card):
    assert re.match(r"# .+\n\n\*\*The claim\.\*\* ", text(card))
    assert re.findall(r"^## (.*)$", text(card), flags=re.MULTILINE) == SECTIONS
    assert f"methods/{card}.md" in (METHODS.parent / "methods.md").read_text()


@pytest.mark.parametrize("card", CARDS)
def test_the_snippet_of_a_card_prints_what_it_says(card):
    (snippet,) = _SNIPPET.findall(text(card))
    said = _SAID.findall(snippet)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(snippet, f"{card}.md", "exec"), {"__name__": card})
    assert said
    assert out.getvalue().splitlines() == said


@pytest.mark.parametrize("card", CARDS)
def test_the_keys_of_a_card_are_known(card):
    table = re.search(r"^\| key \|.*?(?=^$)", text(card), flags=re.MULTILINE | re.DOTALL)
    rows = table.group().splitlines()[2:]
    in_rows = [re.findall(r"`([\w.]+)`", row.split("|")[1]) for row in rows]
    assert all(in_rows)
    groups = {key.partition(".")[0] for key in KEYS if "." in key}
    mentioned = [
        word
        for word in re.findall(r"`(\w+(?:\.\w+)+)(?:=[^`]*)?`", text(card))
        if word.partition(".")[0] in groups
    ]
    assert {*itertools.chain(*in_rows), *mentioned} <= KEYS.keys()
