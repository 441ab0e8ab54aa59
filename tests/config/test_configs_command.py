"""`lbsgd configs`: the recipes there are, their variants, and what each says of itself."""

import ast
import os
import pathlib
import runpy

import pytest

from lbsgd.config import command

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = [*sorted(ROOT.glob("configs/*.py")), *sorted(ROOT.glob("configs/ablations/*.py"))]


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A folder with configs of one's own, where the command is called."""
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "configs"


def said(capsys, *argv: str) -> str:
    assert command.main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_list_has_every_recipe(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = said(capsys)
    paragraphs = {text.split("\n")[0]: text for text in out.strip().split("\n\n")}
    assert list(paragraphs) == [str(path.relative_to(ROOT)) for path in RECIPES]
    assert max(map(len, out.splitlines())) <= 100
    for path in RECIPES:
        first = ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]
        assert f"    {first}" in paragraphs[str(path.relative_to(ROOT))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_variants_are_those_that_the_recipe_knows(path):
    rows = runpy.run_path(str(path)).get("ROWS", {})
    assert command.read_recipe(path).variants == tuple(rows)


@pytest.mark.parametrize(
    "name", ["digits_growing", "digits_growing.py", "configs/digits_growing.py:decay"]
)
def test_one_says_its_docstring(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = said(capsys, name)
    docstring = ast.get_docstring(ast.parse((ROOT / "configs/digits_growing.py").read_text()))
    assert out == f"configs/digits_growing.py\n\n{docstring}\n\nvariants: :decay\n"


def test_recipes_of_the_checkout_are_found_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = said(capsys).split("\n")[0]
    assert os.path.samefile(first, RECIPES[0])


def test_recipes_of_ones_own_come_first(recipes, capsys):
    (recipes / "mine.py").write_text(
        '"""Mine,\nof two lines.\n\nMore."""\nROWS = {"big": 1, "b=": 2}\n'
    )
    (recipes / "bare.py").write_text("x = 1\n")
    (recipes / "broken.py").write_text("def (\n")
    assert said(capsys) == (
        "configs/bare.py\n    (says nothing of itself)\n\n"
        "configs/broken.py\n    configs/broken.py cannot be read: invalid syntax "
        "(<unknown>, line 1)\n\n"
        "configs/mine.py\n    Mine, of two lines.\n    variants: :big  :b=...\n"
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mime", "there is no recipe 'mime' in configs; the nearest is 'mine'"),
        ("", "mine"),
        ("broken", "configs/broken.py cannot be read: "),
        ("nul", "configs/nul.py cannot be read: "),
    ],
)
def test_a_mistake_is_one_line(name, says, recipes, capsys):
    (recipes / "mine.py").write_text('"""Mine."""\n')
    (recipes / "broken.py").write_text("def (\n")
    (recipes / "nul.py").write_text("\0\n")
    code = command.main([name])
    out, err = capsys.readouterr()
    if name:
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"lbsgd: {says}")
    else:
        assert (code, err) == (0, "")


def test_no_recipes_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_BESIDE_PACKAGE", tmp_path / "configs")
    assert command.main([]) == 2
    assert capsys.readouterr().err.startswith("lbsgd: there are no recipes in ./configs, and none")
