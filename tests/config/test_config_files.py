"""Config files are found by path and by name, and which of them wins."""

import pathlib

import pytest

from lbsgd.config import files
from lbsgd.config.files import bundled_config, bundled_configs, find_config, own_configs
from lbsgd.run.recipes import recipe, sibling
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The current folder, which is none of a checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "sweep", "path"),
    [
        ("digits", False, "digits.py"),
        ("digits", True, "ablations/digits.py"),
        ("ablations/digits", False, "ablations/digits.py"),
        ("ablations/digits", True, "ablations/digits.py"),
        ("goyal_table1", False, "ablations/goyal_table1.py"),
        ("goyal_table1", True, "ablations/goyal_table1.py"),
        ("images", True, "images.py"),
    ],
)
def test_a_name_is_of_a_recipe_or_where_a_sweep_is_asked_for_of_that(name, sweep, path, elsewhere):
    assert find_config(name, sweep=sweep) == CONFIGS / path


def test_paths_below_the_current_folder_are_short(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert find_config("digits") == pathlib.Path("configs/digits.py")


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits.py", "ablations/digits"])
def test_a_file_that_is_there_wins(name, elsewhere):
    path = elsewhere / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert find_config(name) == pathlib.Path(name)
    assert find_config(str(path), sweep=True) == path


def test_a_folder_of_the_name_does_not_hide_it(elsewhere):
    (elsewhere / "digits").mkdir()
    assert find_config("digits") == CONFIGS / "digits.py"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("digist", "there is no config 'digist', .* the nearest is 'digits'"),
        ("ablations/goyal_table", "the nearest is 'goyal_table1'"),
        ("", "config file  is no file"),
        ("there", "config file there is no file$"),
        ("digits.py", "digits.py does not exist; lbsgd's own is called 'digits'$"),
        ("a/b.py", "a/b.py does not exist$"),
        ("x\ny" * 999, "there is no config 'x"),
        ("nul\0", "there is no config 'nul"),
    ],
)
def test_none_is_one_line_that_names_the_nearest(text, says, elsewhere):
    (elsewhere / "there").mkdir()
    with pytest.raises(ConfigError, match=says) as caught:
        find_config(text)
    assert len(str(caught.value)) < 300


def test_an_installation_has_its_own_copy(elsewhere, monkeypatch):
    """As a wheel lays it out; the checkout beside the package is for a package in a checkout."""
    package = elsewhere / "site" / "lbsgd"
    (package / "_configs" / "ablations").mkdir(parents=True)
    (package / "_configs" / "installed.py").touch()
    monkeypatch.setattr(files, "_PACKAGE", package)
    assert bundled_configs() == {"installed": pathlib.Path("site/lbsgd/_configs/installed.py")}


def test_those_of_a_checkout_are_not_ones_own(elsewhere, monkeypatch):
    (elsewhere / "configs" / "ablations").mkdir(parents=True)
    for name in ("mine.py", "ablations/table.py", "notes.txt"):
        (elsewhere / "configs" / name).touch()
    assert [str(p) for p in own_configs()] == ["configs/mine.py", "configs/ablations/table.py"]
    monkeypatch.chdir(ROOT)
    assert own_configs() == []


def test_a_sibling_is_beside_the_file_or_else_lbsgds_own(elsewhere):
    pathlib.Path("mine.py").touch()
    assert sibling("mine.py", "digits") == recipe("digits")
    pathlib.Path("digits.py").write_text("def get_config(arg):\n    return arg\n")
    assert sibling("mine.py", "digits", "beside") == "beside"
    assert recipe("imagenet_goyal", "batch=1024").batch_size == 1024
    with pytest.raises(ConfigError, match="nearest is 'images'"):
        sibling("mine.py", "image")
    with pytest.raises(ConfigError, match="nearest is 'images'"):
        bundled_config("image")
