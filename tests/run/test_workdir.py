"""The folder of a run, under names that a system allows."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from lbsgd.run.workdir import Workdir
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ["[lr=0.1]", "r*", "r_\udce9", " two  words ", "two\nlines", "größe", "x" * 255]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_taken(name, tmp_path):
    folder = Workdir(tmp_path / name / "run")
    config = {"data.dir": os.fspath(folder.path)}
    folder.claim({"seed": 0}, config, {"cpus": 2}).close()
    written = json.loads(folder.config.read_text())
    assert (written["run"], written["config"]) == ({"seed": 0}, config)
    assert json.loads(folder.machine.read_text()) == [{"cpus": 2}]
    (folder.checkpoints / "1").mkdir()
    folder.claim({"seed": 0}, config, {"cpus": 2}).close()
    with pytest.raises(ConfigError, match="holds a run that differs in seed"):
        folder.claim({"seed": 1}, config, {"cpus": 2})


@pytest.mark.parametrize("name", ["x" * 256, "/".join(["x" * 255] * 17)])
def test_a_name_that_is_too_long_is_a_line(name, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written \(File name too long\)"):
        Workdir(tmp_path / name).claim({}, {}, {})


@pytest.mark.long
@pytest.mark.parametrize("name", ["[lr=0.1]", "r_\udce9", "two\nlines"])
def test_a_run_in_a_folder_of_any_name_ends_and_goes_on(name, tmp_path):
    """Also where that is above the current folder."""
    (tmp_path / name).mkdir()

    def run(module: str, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *args],
            cwd=tmp_path / name,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    config = (f"--config={ROOT}/configs/digits.py", "--config.model.width=0.25")
    length = ("--config.total_epochs=0", "--config.total_steps=4")
    warmup = "--config.learning_rate.warmup_epochs=0.1"
    saves = ("--config.checkpoint.every_epochs=0", "--config.checkpoint.every_steps=2")
    args = (*config, *length, warmup, *saves, f"--workdir={name}")
    run("lbsgd.main", *args)
    folder = tmp_path / name / name
    assert sorted(os.listdir(folder / "checkpoints")) == ["2", "4"]
    assert (folder / "curves.png").stat().st_size > 0
    (folder / "checkpoints" / "4").rename(tmp_path / "4")
    assert "resumes after update 2" in run("lbsgd.main", *args)
    assert run("lbsgd.main", "checkpoint", "verify", name).count(": ok, ") == 2
