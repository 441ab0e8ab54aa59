"""What docs/use.md shows runs as it stands."""

import json
import pathlib
import re
import shlex
import shutil

import pytest

from lbsgd.config.keys import flatten
from lbsgd.run.config import default_config
from lbsgd.use import arguments, evaluate_command, predict_command

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "use.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = re.findall(r"^ {4}lbsgd (evaluate|predict) (.*)$", PAGE, flags=re.MULTILINE)


def test_there_are_some():
    assert (len(SNIPPETS), len(COMMANDS)) == (3, 7)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet, finished, files, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished, tmp_path / "runs" / "x")
    shutil.copytree(files, tmp_path / "photos")
    for name in ("cat.jpg", "dog.png"):
        shutil.copy(next(files.glob("3/*")), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/use.md", "exec"), {})
    out = capsys.readouterr().out
    if "found =" in snippet:
        found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
        assert str(found["examples"]) in out
    elif "predict" in snippet:
        assert [line.split()[0] for line in out.splitlines()] == ["cat.jpg", "dog.png"]


@pytest.mark.parametrize(("command", "line"), COMMANDS)
def test_commands_can_be_read(command, line):
    parse = {"evaluate": evaluate_command, "predict": predict_command}[command]._parse
    words, keys = arguments.split_keys(shlex.split(line))
    assert parse(words).run == "runs/x"
    assert keys.keys() <= {key for key, _ in flatten(default_config())}
