"""The parser of commands: a mistake is one line, help is the docstring within 100 columns."""

import pytest

from lbsgd.checkpoint import command as checkpoint
from lbsgd.config import command as configs
from lbsgd.data import command as prepare
from lbsgd.diagnostics import command as diagnose
from lbsgd.launch import local as launch
from lbsgd.system.command_line import Parser, asks_for_help

COMMANDS = {
    "prepare": prepare,
    "checkpoint": checkpoint,
    "diagnose": diagnose,
    "launch": launch,
    "configs": configs,
}


@pytest.fixture(params=COMMANDS)
def command(request):
    return COMMANDS[request.param]


@pytest.mark.parametrize("argv", [["--none"], ["too", "many", "of", "them\nall"]])
def test_a_mistake_is_one_line(command, capsys, argv):
    assert command.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lbsgd: ")
    assert err.endswith("; --help says more\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [60, 300])
def test_help_is_the_docstring(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name].main(["--help"])
    assert not stop.value.code
    out, err = capsys.readouterr()
    assert COMMANDS[name].__doc__.strip() in out
    assert out.startswith(f"usage: lbsgd {name} ")
    assert max(map(len, out.splitlines())) <= 100
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "asks"),
    [
        (["help"], True),
        (["-h"], True),
        (["a", "--help", "b"], True),
        ([], False),
        (["help", "a"], False),
        (["a", "help"], False),
        (["--helpful"], False),
    ],
)
def test_what_asks_for_help(argv, asks):
    assert asks_for_help(argv) == asks


def test_help_counts_whatever_else_is_wrong(capsys):
    parser = Parser("lbsgd x", "About x.")
    parser.add_argument("number", type=int)
    with pytest.raises(SystemExit):
        parser.parse(["no number", "--none", "--help"])
    assert "About x." in capsys.readouterr().out
