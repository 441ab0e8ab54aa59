"""Every command of argparse: a mistake is one line and exit code 2, help is the docstring."""

import importlib

import pytest

COMMANDS = [
    "checkpoint.__main__",
    "data.prepare",
    "data.sources.tfrecord",
    "diagnostics.__main__",
    "launch.local",
]


@pytest.fixture(params=COMMANDS)
def command(request):
    return importlib.import_module(f"lbsgd.{request.param}")


@pytest.mark.parametrize("argv", [[], ["--none"], ["too", "many", "of", "them\nall"]])
def test_a_mistake_is_one_line(command, capsys, argv):
    assert command.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lbsgd: ")
    assert err.endswith("; --help says more\n")
    assert err.count("\n") == 1


def test_help_is_the_docstring(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert not stop.value.code
    out, err = capsys.readouterr()
    assert command.__doc__.strip() in out
    name = command.__name__.removesuffix(".__main__")
    assert out.startswith(f"usage: python -m {name} ")
    assert err == ""
