"""Checkpoints in folders whose names mean something to the libraries that write them."""

import contextlib
import os
import pathlib
import shutil

import pytest
from checkpoint_folder import (
    IDENTITY,
    Opened,
    assert_same,
    damage,
    filled,
    on_disk,
    restored,
    state,
)

from lbsgd.checkpoint import store
from lbsgd.checkpoint.command import main
from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.system.errors import ConfigError

ODD = [
    "[lr=0.1]",
    "r[a",
    "r*",
    "r?",
    "{a,b}",
    "a\\b",
    "gs:",  # which etils takes for a bucket, wherever it stands
    "r_\udce9",  # not UTF-8
]
OTHERS = [" two  words ", "two\nlines", "lr=0.1,seed:3 #%41$;'\"", "~", "größe"]


@pytest.mark.parametrize("name", ODD + OTHERS)
def test_checkpoints_are_saved_kept_and_restored(name, tmp_path):
    for other in ("l", "r", "rx", "a", "b"):  # that globs would find
        (tmp_path / other / "checkpoints" / "1" / "state").mkdir(parents=True)
    folder = tmp_path / name / "checkpoints"
    filled(folder, [1, 2, 3], keep=2)
    assert on_disk(folder) == ["2", "3"]
    (folder / f"4{store.TEMPORARY}-1").mkdir()
    damage(folder / "3")
    update, said = restored(folder)
    assert update == 2
    assert [line.partition(":")[0] for line in said] == ["checkpoint 3 is passed over"]
    assert on_disk(folder) == ["2", "3"]


@pytest.mark.parametrize("name", ["[here]", "r_\udce9"])
def test_the_current_folder_may_have_such_a_name(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    filled(pathlib.Path("r/checkpoints"), [1, 2])
    assert restored(tmp_path / name / "r" / "checkpoints") == (2, [])


def test_what_is_read_is_of_the_folder_that_is_asked(tmp_path):
    """Each is reached by the number of an open file, and those are used again."""
    one, other = tmp_path / "[1]", tmp_path / "[2]"
    for folder, value in ((one, 3), (other, 4)):
        with Opened(folder) as opened:
            opened.checkpoints.save(1, state(value))
    for folder, value in ((one, 3), (other, 4), (one, 3)):
        with Opened(folder) as opened:
            assert_same(opened.checkpoints.restore(state())[1], state(value))
    shutil.rmtree(one)
    other.rename(one)
    with Opened(one) as opened:
        assert_same(opened.checkpoints.restore(state())[1], state(4))


def open_within(folder) -> list[str]:
    """What this process has open there; other files are not of this test."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return [name for name in names if name.startswith(str(folder))]


def test_no_file_stays_open(tmp_path):
    filled(tmp_path / "[2]", [1, 2])
    assert restored(tmp_path / "[2]") == (2, [])
    assert open_within(tmp_path) == []
    with (tmp_path / "another").open("w"):
        assert open_within(tmp_path) == [str(tmp_path / "another")]


@pytest.mark.parametrize("name", ["[lr=0.1]", "r*", "two words"])
def test_the_commands_read_them(name, tmp_path, capsys):
    folder = tmp_path / name
    filled(folder / "checkpoints", [1, 2])
    assert main(["list", str(folder)]) == 0
    assert main(["show", str(folder), "1"]) == 0
    assert main(["verify", str(folder)]) == 0
    assert f"{folder}/checkpoints/2: ok, " in capsys.readouterr().out


def test_a_tilde_is_the_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    filled(tmp_path / "r" / "checkpoints", [1])
    assert main(["verify", "~/r"]) == 0
    assert f"{tmp_path}/r/checkpoints/1: ok, " in capsys.readouterr().out


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """As on systems other than Linux, where an open folder is no path."""
    monkeypatch.setattr(store, "OPEN_FILES", str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ODD)
def test_elsewhere_the_odd_ones_are_refused(name, tmp_path, elsewhere):
    folder = tmp_path / name / "checkpoints"
    with pytest.raises(ConfigError, match=r"cannot lie below .*; choose another --workdir"):
        Checkpoints(folder, 2, IDENTITY, say=pytest.fail)
    assert not folder.exists()


def test_elsewhere_the_commands_refuse_them(tmp_path, elsewhere, capsys):
    (tmp_path / "[1]" / "checkpoints" / "1").mkdir(parents=True)
    assert main(["verify", str(tmp_path / "[1]")]) == 2
    assert "checkpoints: on this system checkpoints cannot lie below" in capsys.readouterr().err


@pytest.mark.parametrize("name", OTHERS)
def test_elsewhere_the_others_are_taken(name, tmp_path, elsewhere):
    filled(tmp_path / name, [1])
    assert restored(tmp_path / name) == (1, [])
