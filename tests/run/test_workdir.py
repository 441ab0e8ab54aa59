"""The folder of a run, under names that a system allows."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from tiny_run import tiny_config

from lbsgd import train
from lbsgd.config.keys import flatten
from lbsgd.run.flags import stored_config
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


# Of each an option that is not chosen, the key that is used with it, and two values.
WITHOUT_EFFECT = {
    "of another optimizer": ("optimizer.beta1", 0.5, 0.8),
    "of another source": ("data.tfds_name", "mnist", "cifar10"),
    "of a switch that is off": ("batch_growth.largest", 512, 1024),
}


@pytest.mark.parametrize(
    "case",
    [
        *list(WITHOUT_EFFECT)[:1],
        *(pytest.param(case, marks=pytest.mark.long) for case in list(WITHOUT_EFFECT)[1:]),
    ],
)
def test_a_workdir_keeps_keys_without_effect_and_does_not_compare_them(case, tmp_path, capsys):
    key, first, second = WITHOUT_EFFECT[case]

    def start(**keys: object) -> None:
        """Begins the run in the folder, or resumes it, and stops before its first update."""
        train.run(tiny_config(**keys), tmp_path, should_stop=lambda done: True)

    def written() -> tuple[object, object]:
        there = json.loads((tmp_path / "config.json").read_text())
        group, leaf = key.split(".")
        return there["config"][group][leaf], there["run"].get(key)

    default = tiny_config().to_dict()[key.split(".")[0]][key.split(".")[1]]
    start(**{key: first})
    assert f"without effect: {key}={first!r}" in capsys.readouterr().out
    assert written() == (first, default)
    assert dict(flatten(stored_config(tmp_path)))[key] == first
    # As a run has it that has made updates.
    (tmp_path / "checkpoints" / "1").mkdir()
    start(**{key: second})
    assert written() == (second, default)
    with pytest.raises(
        ConfigError, match=r"holds a run that differs in optimizer\.momentum \(0\.9"
    ):
        start(**{key: second, "optimizer.momentum": 0.8})
    assert written() == (second, default)
