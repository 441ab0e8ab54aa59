"""`lbsgd configs`: the recipes there are, their variants, and what each says of itself."""

import ast
import pathlib
import runpy

import pytest

from lbsgd.config import command
from lbsgd.run.config_file import ConfigFile

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


def paragraphs(out: str) -> dict[str, str]:
    return {text.split("\n")[0]: text for text in out.strip().split("\n\n")}


def test_the_list_has_every_recipe_wherever_it_is_called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = said(capsys)
    names = [str(path.relative_to(ROOT / "configs").with_suffix("")) for path in RECIPES]
    found = paragraphs(out)
    assert list(found) == names
    assert max(map(len, out.splitlines())) <= 100
    for name, path in zip(names, RECIPES):
        first = ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]
        assert f"    {first}" in found[name]
    monkeypatch.chdir(tmp_path)
    assert said(capsys) == out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_variants_are_those_that_the_recipe_knows(path):
    rows = runpy.run_path(str(path)).get("ROWS", {})
    assert command.read_recipe(path).variants == tuple(rows)


@pytest.mark.parametrize(
    "name", ["digits_growing", "digits_growing:decay", "configs/digits_growing.py:decay"]
)
def test_one_says_its_docstring(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out = said(capsys, name)
    docstring = ast.get_docstring(ast.parse((ROOT / "configs/digits_growing.py").read_text()))
    assert out == f"configs/digits_growing.py\n\n{docstring}\n\nvariants: :decay\n"


def test_of_two_of_a_name_the_sweep_is_in_its_folder(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert said(capsys, "digits").startswith("configs/digits.py\n")
    assert said(capsys, "ablations/digits").startswith("configs/ablations/digits.py\n")
    assert said(capsys, "goyal_table1").startswith("configs/ablations/goyal_table1.py\n")


def test_recipes_of_ones_own_come_first_by_path(recipes, capsys):
    (recipes / "mine.py").write_text(
        '"""Mine,\nof two lines.\n\nMore."""\nROWS = {"big": 1, "b=": 2}\n'
    )
    (recipes / "bare.py").write_text("x = 1\n")
    (recipes / "broken.py").write_text("def (\n")
    assert said(capsys).startswith(
        "configs/bare.py\n    (says nothing of itself)\n\n"
        "configs/broken.py\n    configs/broken.py cannot be read: invalid syntax "
        "(<unknown>, line 1)\n\n"
        "configs/mine.py\n    Mine, of two lines.\n    variants: :big  :b=...\n\n"
        "cifar10\n"
    )


def test_a_copy_is_the_file_and_is_taken_as_a_config(tmp_path, monkeypatch, capsys):
    """Also that of one that begins as another, which does not lie beside the copy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    out = said(capsys, "digits_lars", "--copy", "mine/big.py")
    assert out == "mine/big.py is yours to edit; lbsgd takes it as --config mine/big.py\n"
    assert (tmp_path / "mine/big.py").read_bytes() == (ROOT / "configs/digits_lars.py").read_bytes()
    assert ConfigFile("mine/big.py").config() == ConfigFile("digits_lars").config()
    said(capsys, "ablations/digits", "--copy", "digits.py")
    assert ConfigFile("digits.py").config() == ConfigFile("digits").config()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["digits", "--copy", "there.py"], "there.py is there already; give --copy another name"),
        (["digits", "--copy", "there.py/x.py"], "there.py/x.py cannot be written ("),
        (["digits", "--copy", "nul\0.py"], "cannot be written ("),
        (["--copy", "x.py"], "--copy FILE copies one recipe; name it"),
        (["dgits", "--copy", "x.py"], "there is no config 'dgits', neither"),
    ],
)
def test_a_copy_that_cannot_be_made_is_one_line(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py").write_text("mine")
    assert command.main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "digts",
            "there is no config 'digts', neither a file nor by name; the nearest is 'digits'",
        ),
        ("configs/broken.py", "configs/broken.py cannot be read: "),
        ("configs/nul.py", "configs/nul.py cannot be read: "),
    ],
)
def test_a_mistake_is_one_line(name, says, recipes, capsys):
    (recipes / "broken.py").write_text("def (\n")
    (recipes / "nul.py").write_text("\0\n")
    code = command.main([name])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"lbsgd: {says}")
