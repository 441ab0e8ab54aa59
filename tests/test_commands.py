"""The words of `lbsgd`: which command they are, help of each, and mistakes as one line."""

import pathlib
import random
import re
import subprocess
import sys

import pytest

from lbsgd.main import COMMANDS, main

ROOT = pathlib.Path(__file__).parents[1]
OTHERS = [name for name in COMMANDS if name != "train"]


def called(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        code = main(argv)
    except SystemExit as stop:  # of argparse's help
        code = stop.code or 0
    return code, *capsys.readouterr()


def test_the_commands_are_those_of_the_issue():
    first = ["train", "sweep", "compare", "evaluate", "predict", "prepare", "checkpoint"]
    assert list(COMMANDS) == [*first, "diagnose", "launch", "configs", "completion"]


@pytest.mark.parametrize("argv", [(), ("help",), ("-h",), ("--help",)])
def test_help_lists_the_commands(argv, capsys):
    code, out, err = called(capsys, *argv)
    assert (code, err) == (0, "")
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in out
        assert command.summary in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    code, out, err = called(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: lbsgd {command} ")
    assert max(map(len, out.splitlines())) <= 100
    for argv in ([command, "-h"], [command, "help"], ["help", command], [command, "x", "--help"]):
        assert called(capsys, *argv) == (0, out, ""), argv


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_have_one_style_and_helps_stand_alone(command, capsys):
    """Underscores, as absl has them; and no help is a fragment that ends the name of its flag."""
    _, out, _ = called(capsys, command, "--help")
    flags = re.findall(r"^  (?:-h, )?--(\S+)", out, flags=re.MULTILINE)
    assert len(flags) >= (4 if command in ("train", "prepare", "launch") else 1)
    assert not [flag for flag in flags if "-" in flag]
    helps = out.partition("config keys")[0]  # whose meanings tests/run/test_unused.py reads
    texts = re.findall(r"^  [\w-]\S*(?: \S+)*(?: {2,}|\n +)(\S.*)", helps, flags=re.MULTILINE)
    assert len(texts) >= len(flags)
    assert not [text for text in texts if re.match("(of|by|between|that|which of) ", text)]


def test_help_after_the_dashes_of_the_launcher_is_that_of_a_run(capsys):
    code, out, err = called(capsys, "launch", "--num_processes=2", "--", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: lbsgd train ")
    assert called(capsys, "launch", "--help", "--", "--help")[1].startswith("usage: lbsgd launch ")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("trian", "train"),
        ("resume", "prepare"),
        ("checkpoints", "checkpoint"),
        ("config", "configs"),
        ("Launch", "launch"),
        ("diagnostics", "diagnose"),
        ("", "train"),
        ("x\ny" * 999, "train"),
    ],
)
def test_an_unknown_command_names_the_nearest(word, near, capsys):
    code, out, err = called(capsys, word, "--config=x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("lbsgd: there is no command ")
    assert f"; the nearest is {near!r}; " in err
    assert len(err) < 200


@pytest.mark.parametrize("argv", [["--config=configs/none.py"], ["--wrokdir=x"], ["--config.x=3"]])
def test_flags_alone_are_those_of_train(argv, capsys):
    alone = called(capsys, *argv)
    assert alone == called(capsys, "train", *argv)
    assert (alone[0], alone[1], alone[2].count("\n")) == (2, "", 1)


def test_help_and_mistakes_wait_for_no_library():
    """Neither numpy nor jax is imported before the arguments are checked."""
    lines = [[], ["none"], *([name, how] for name in COMMANDS for how in ("--help", "--none"))]
    code = (
        "import contextlib, sys\n"
        "from lbsgd.main import main\n"
        f"for argv in {lines!r}:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(argv)\n"
        "print({'jax', 'numpy', 'matplotlib', 'cv2'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("\nset()\n"), done.stderr


WORDS = ["--", "-", "-x", "--none", "--num_processes=0", "--verify", "--tfrecord", "list", "verify"]
WORDS += ["show", "/nowhere", "9", "--split=train", "--workers=-1", "--quality=x", "a\nb", "", "é"]
WORDS += ["--config.batch_size=3", "--noconfig.x", "--explain=maybe", "--workdir=/nowhere", "%s"]
WORDS += [*OTHERS, "trian", "--raw", "--max_side", "digits", "--platform=none"]


@pytest.mark.parametrize("command", COMMANDS)
def test_any_words_are_a_result_or_a_line(command, capsys):
    chosen = random.Random(command)
    for _ in range(100):
        argv = [command, *chosen.choices(WORDS, k=chosen.randrange(5))]
        code, out, err = called(capsys, *argv)
        if code == 0:
            assert command == "configs", argv
            assert (bool(out), err) == (True, ""), argv
        else:
            assert (code, out, err.count("\n")) == (2, "", 1), (argv, err)
            assert err.startswith("lbsgd: "), argv
