"""Names of other people's code in a config: found, called, and what goes wrong in it in a line."""

import functools
import hashlib
import itertools

import pytest

from lbsgd.config.dotted import is_dotted, load
from lbsgd.system.errors import ConfigError

CODE = '''\
"""Things to be named."""
import functools

class Net:
    def __init__(self, width=8, *, num_classes, parent=None, name=None):
        self.width, self.num_classes = width, num_classes

    class Inner:
        pass

def scale(factor, **rest):
    return {"factor": factor, **rest}

def broken(x):
    return helper(x)

def helper(x):
    return x.missing

half = functools.partial(scale, 0.5)
number = 3
'''
counter = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of an own name into the current folder; gives its name."""
    monkeypatch.chdir(tmp_path)
    name = f"named_by_config_{next(counter)}"

    def write(text: str = CODE) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_name_with_a_colon_is_dotted():
    assert is_dotted("a.b:C")
    assert not is_dotted("resnet50")


def test_what_is_loaded_knows_its_source(module, tmp_path):
    name = module()
    named = load("model.name", f"{name}:Net")
    assert named.file == str(tmp_path / f"{name}.py")
    assert named.where == f"{name}.py, line 4"
    assert named.digest == hashlib.sha256(CODE.encode()).hexdigest()
    assert named.digest[:12] in named.describe()
    assert load("model.name", f"{name}:Net.Inner").value.__name__ == "Inner"
    assert load("x", f"{name}:half").where == f"{name}.py, line 11"


def test_it_is_called_with_options_and_what_it_takes_of_what_is_offered(module):
    name = module()
    net = load("model.name", f"{name}:Net").call({"width": 4}, num_classes=10, dtype="no")
    assert (net.width, net.num_classes) == (4, 10)
    net = load("model.name", f"{name}:Net").call({"num_classes": 2}, num_classes=10)
    assert (net.width, net.num_classes) == (8, 2)
    # What takes anything takes any option, but is not offered what it does not name.
    assert load("x", f"{name}:half").call({"a": 1}, b=2) == {"factor": 0.5, "a": 1}


def test_a_name_may_be_an_option_of_what_is_no_module_of_flax(module):
    sink = load("x", f"{module('def f(name, folder=None): return name')}:f")
    assert sink.call({"name": "mine"}) == "mine"
    with pytest.raises(ConfigError, match=r"needs 'name'; set y\.options\.f\.name"):
        sink._replace(options="y.options.f").arguments({})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere_at_all:Net", "there is no module 'nowhere_at_all' in the current folder, nor"),
        ("{m}:Nett", "there is no 'Nett' in {m}; the nearest is 'Net'"),
        ("{m}:number", "is 3, which cannot be called"),
        ("{m}:", "model.name must be a name, or"),
        ("a b:c", "model.name must be a name, or"),
    ],
)
def test_a_name_that_is_none_is_one_line(name, says, module):
    with pytest.raises(ConfigError) as caught:
        load("model.name", name.format(m=module()))
    assert says.format(m=module()) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widht": 1}, "has no option 'widht'; the nearest that it has is 'width'"),
        ({"name": 1}, "has no option 'name'"),
        ({}, "needs 'num_classes'; set model.options.num_classes"),
    ],
)
def test_options_are_checked_against_the_signature(options, says, module):
    name = module()
    with pytest.raises(ConfigError) as caught:
        load("model.name", f"{name}:Net").call(options)
    assert str(caught.value).startswith(f"model.name='{name}:Net' ({name}.py, line 4) {says}")


def test_an_error_inside_says_where(module):
    name = module()
    named = load("task.name", f"{name}:broken")
    with pytest.raises(ConfigError) as caught:
        named.call({"x": 3})
    assert str(caught.value) == (
        f"task.name='{name}:broken': {name}.py, line 18: AttributeError: 'int' object has no "
        "attribute 'missing'"
    )
    # What it gave is called later, by others.
    with pytest.raises(ConfigError, match="line 18: AttributeError"):
        named.guarded(functools.partial(lambda f: f.value(None), named))()


def test_an_error_in_what_it_is_not_is_said_of_its_definition(module):
    name = module("import json\ndef f():\n    return 1\n")
    named = load("x", f"{name}:f")
    with pytest.raises(ConfigError, match=f"{name}.py, line 2: ZeroDivisionError"):
        named.guarded(lambda: 1 / 0)()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = (\n", ".py, line 1: SyntaxError"),
        ("x = 1\ny = z\n", ".py, line 2: NameError"),
        ("import not_a_package_of_anyone\n", ".py, line 1: ModuleNotFoundError"),
        ("raise SystemExit(4)\n", ".py, line 1: SystemExit"),
    ],
)
def test_a_file_that_does_not_run_is_one_line(text, says, module):
    name = module(text)
    with pytest.raises(ConfigError) as caught:
        load("x", f"{name}:f")
    assert f"{name}{says}" in str(caught.value)
    assert "\n" not in str(caught.value)
