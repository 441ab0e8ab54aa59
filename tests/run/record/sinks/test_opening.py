"""Whatever a sink does, the run goes on: each failure is a line that names it, said once."""

import functools
import itertools
import pathlib
import re
import sys

import pytest
from partial_config import config_with

from lbsgd.run.config import resolve
from lbsgd.run.record.sinks.opening import Sinks
from lbsgd.system.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[4]
CODE = '''\
"""Sinks, good and bad."""
import json

class Lines:
    def __init__(self, folder, start, config, end="\\n"):
        self.file = (folder / "lines.txt").open("a")
        self.end = end
        self.file.write(f"{start} {config['seed']}{end}")

    def __call__(self, step, values):
        self.file.write(f"{step} {json.dumps(values)}{self.end}")

    def close(self):
        self.file.close()

def opens_badly(folder):
    raise RuntimeError("no such host\\nmore")

def gives_nothing(folder):
    print

class WritesBadly:
    def __call__(self, step, values):
        values.clear()
        if step > 1:
            json.loads("{")

    def close(self):
        raise OSError("which is said no more")

class ClosesBadly:
    def __call__(self, step, values):
        pass

    def close(self):
        raise OSError(28, "No space left on device")

def takes_too_little():
    return lambda step: None
'''
FAILS = """
class Fails:
    def __call__(self, step, values):
        raise ValueError

    def close(self):
        open("closed.txt", "x").close()
"""
counter = itertools.count()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module in the current folder."""
    monkeypatch.chdir(tmp_path)
    name = f"sinks_good_and_bad_{next(counter)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


def use(folder, *sinks, on_metrics=None, **options) -> list[str]:
    """Opens sinks, writes two lines of metrics and closes them; gives what was said."""
    said: list[str] = []
    config = resolve(config_with(**{"log.sinks": sinks, "log.sink_options": options}))
    opened = Sinks(config, folder, said.append, on_metrics)
    opened.open(5)
    for step in (6, 7):
        opened(step, {"train_loss": step / 2})
    opened.close()
    return said


def test_a_sink_of_users_gets_what_it_asks_for(mine, tmp_path):
    assert use(tmp_path, f"{mine}:Lines", Lines={"end": ";"}) == []
    text = (tmp_path / "lines.txt").read_text()
    assert text == '5 0;6 {"train_loss": 3.0};7 {"train_loss": 3.5};'


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("opens_badly", "line 17: RuntimeError: no such host"),
        ("gives_nothing", "line 19: TypeError: it gives None, which takes no metrics"),
        (
            "WritesBadly",
            "line 26: JSONDecodeError: Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)",
        ),
        ("ClosesBadly", "line 36: OSError: [Errno 28] No space left on device"),
    ],
)
def test_one_that_fails_is_a_line_and_the_others_go_on(mine, tmp_path, name, says):
    said = use(tmp_path, f"{mine}:{name}", f"{mine}:Lines")
    assert said == [f"log.sinks='{mine}:{name}': {mine}.py, {says}; the run continues without it"]
    assert len((tmp_path / "lines.txt").read_text().splitlines()) == 3


def test_one_that_fails_is_closed(mine, tmp_path):
    """What it has open would be open as long as the run."""
    (tmp_path / f"{mine}.py").write_text(f"{CODE}{FAILS}")
    (line,) = use(tmp_path, f"{mine}:Fails")
    assert "ValueError: ValueError; the run continues without it" in line
    assert (tmp_path / "closed.txt").exists()


def test_one_that_takes_other_arguments_is_a_line(mine, tmp_path):
    (line,) = use(tmp_path, f"{mine}:takes_too_little")
    assert f"{mine}.py, line 38: TypeError: takes_too_little.<locals>.<lambda>() takes 1" in line


def test_the_sink_of_the_documentation_is_complete_and_resumes(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "running.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) < 30
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mysink.py").write_text(code)
    config = {"log.sinks": ("mysink:Table",), "log.sink_options": {"Table": {"columns": ("b",)}}}
    for start in (0, 2):
        sinks = Sinks(resolve(config_with(**config)), tmp_path, pytest.fail)
        sinks.open(start)
        for step in range(start + 1, start + 4):
            sinks(step, {"train_loss": 1.0})
            sinks(step, {"val_error": 2.0, "b": 10 * start + step})
        sinks.close()
    rows = (tmp_path / "evaluations.csv").read_text().split()
    assert rows == ["step,b", "1,1", "2,2", "3,23", "4,24", "5,25"]


def test_an_interrupt_is_not_held_back(tmp_path):
    def interrupt(step, values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use(tmp_path, on_metrics=interrupt)


def test_on_metrics_gets_all_and_its_first_error_is_a_line(tmp_path):
    got = []

    def record(step, values):
        got.append((step, values))

    assert use(tmp_path, on_metrics=record) == []
    assert got == [(6, {"train_loss": 3.0}), (7, {"train_loss": 3.5})]

    def fail(step, values):
        got.append(step)
        raise ValueError("of mine")

    got.clear()
    (line,) = use(tmp_path, on_metrics=fail)
    assert got == [6]
    line_number = fail.__code__.co_firstlineno + 2
    where = f"line {line_number}: ValueError: of mine; the run continues without it"
    assert line.startswith(
        "on_metrics='test_on_metrics_gets_all_and_its_first_error_is_a_line.<loc"
    )
    assert line.endswith(where)


class Closable(list):
    """Empty, it counts as False."""

    def __call__(self, step, values):
        self.append(step)

    def close(self):
        raise AssertionError("it is its user's to close")


@pytest.mark.parametrize("wrap", [lambda f: f, functools.partial])
def test_on_metrics_may_be_anything_that_can_be_called(tmp_path, wrap):
    got = Closable()
    assert use(tmp_path, on_metrics=wrap(got)) == []
    assert got == [6, 7]


@pytest.mark.parametrize(
    ("sink", "module", "install"),
    [
        ("tensorboard", "tensorboardX", "tensorboardX"),
        ("clu", "tensorflow", "'lbsgd[clu]'"),
        ("wandb", "wandb", "'lbsgd[wandb]'"),
        ("mlflow", "mlflow", "'lbsgd[mlflow]'"),
    ],
)
@pytest.mark.parametrize("folder_of_that_name", [False, True])
def test_one_whose_package_is_missing_is_a_line(
    tmp_path, monkeypatch, sink, module, install, folder_of_that_name
):
    """Such as a folder that Weights & Biases itself leaves behind."""
    if folder_of_that_name:
        (tmp_path / module).mkdir()
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "ditable" not in repr(f)])
    said = use(tmp_path, sink)
    assert said == [
        f"log.sinks='{sink}' is off: {module} is not installed; pip install {install} turns it on"
    ]


def test_one_of_our_own_that_cannot_be_opened_is_a_line(tmp_path):
    (tmp_path / "tensorboard").write_text("no folder")
    (line,) = use(tmp_path, "tensorboard")
    assert line.startswith("log.sinks='tensorboard': FileExistsError: ")
    assert line.endswith("; the run continues without it")


def test_a_sink_that_is_not_there_ends_the_run_before_it_begins(tmp_path):
    config = resolve(config_with(**{"log.sinks": ("nowhere_at_all:Sink",)}))
    with pytest.raises(ConfigError, match="there is no module 'nowhere_at_all'"):
        Sinks(config, tmp_path, pytest.fail)
