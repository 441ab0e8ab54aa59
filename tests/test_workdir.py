"""The folder of a run, under names that a system allows."""

import json
import os

import pytest

from lbsgd.errors import ConfigError
from lbsgd.workdir import Workdir

NAMES = ["[lr=0.1]", "r*", "r_\udce9", " two  words ", "two\nlines", "größe", "x" * 255]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_taken(name, tmp_path):
    folder = Workdir(tmp_path / name / "run")
    config = {"data.dir": os.fspath(folder.path)}
    folder.claim({"seed": 0}, config, {"cpus": 2}).close()
    assert json.loads(folder.config.read_text()) == {"run": {"seed": 0}, "config": config}
    assert json.loads(folder.machine.read_text()) == [{"cpus": 2}]
    (folder.checkpoints / "1").mkdir()
    folder.claim({"seed": 0}, config, {"cpus": 2}).close()
    with pytest.raises(ConfigError, match="holds a run that differs in seed"):
        folder.claim({"seed": 1}, config, {"cpus": 2})


@pytest.mark.parametrize("name", ["x" * 256, "/".join(["x" * 255] * 17)])
def test_a_name_that_is_too_long_is_a_line(name, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written \(File name too long\)"):
        Workdir(tmp_path / name).claim({}, {}, {})
