"""`lbsgd train` with config files and flags at random: a run, or one line and exit code 2.

The check of the values themselves is in test_fuzz_config.py, in process and by the thousand;
that of the words of all commands is in tests/test_commands.py.
"""

import concurrent.futures
import os
import pathlib
import random
import re
import subprocess
import sys

import pytest
from hanging import HANG_SECONDS
from test_fuzz_config import DEFAULTS, FLOATS, INTEGERS, TEXTS, TUPLES, misspelt

from lbsgd.run.config import KEYS

ROOT = pathlib.Path(__file__).parents[2]

# Config files that are none, and what their line must say.
HEAD = "import sys\nimport ml_collections\nfrom lbsgd.run.config import default_config\n"


def returns(*lines: str) -> str:
    """A file whose get_config changes the default config."""
    body = "".join(f"    {line}\n" for line in ("config = default_config()", *lines))
    return f"{HEAD}def get_config(arg=''):\n{body}    return config\n"


FILES = {
    "nothing": ("", "there is no function get_config"),
    "a list": ("def get_config(arg=''):\n    return []\n", "must return a ConfigDict, not \\[\\]"),
    "a dict": ("def get_config(arg=''):\n    return {}\n", "must return a ConfigDict, not {}"),
    "no function": ("get_config = 3\n", "there is no function get_config"),
    "ends": (returns("sys.exit(0)"), "line 6: SystemExit: 0"),
    "ends with text": ("import sys\nsys.exit('a\\nb')\n", "line 2: SystemExit: a"),
    "recursion": ("def get_config(arg=''):\n    return get_config(arg)\n", "RecursionError"),
    "memory": ("def get_config(arg=''):\n    return bytearray(10**18)\n", "MemoryError"),
    "a long error": (
        returns("raise ValueError('a\\nb\\n' * 99)"),
        "a long error.py, line 6: ValueError: a$",
    ),
    "nul": ("x = '\0'\n", "null bytes"),
    "parentheses": ("x = " + "(" * 500 + "\n", "SyntaxError"),
    "holds itself": (returns("config.unlock()", "config.data.more = config"), "holds itself"),
    "group lost": (returns("config.unlock()", "config.data = 3"), "'data'"),
    "group empty": (
        returns("config.unlock()", "config.data = ml_collections.ConfigDict()"),
        "'data' is a group of keys",
    ),
    "required": (
        returns(
            "config.unlock()",
            "config.seed = ml_collections.config_dict.required_placeholder(int)",
        ),
        "RequiredValueError|cannot be read",
    ),
    "required in a group": (
        returns(
            "config.unlock()",
            "config.data.dir = ml_collections.config_dict.required_placeholder(str)",
        ),
        "RequiredValueError|cannot be read",
    ),
    "a number as key": (returns("config.unlock()", "config[3] = 3"), "TypeError"),
}


def command(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `lbsgd train` that trains nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "lbsgd.main", "train", *args, "--explain"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=HANG_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def check_command(args: list[str]) -> str:
    """Runs it: the one line that it ends in, or "" for success."""
    code, out, err = command(*args)
    assert code in (0, 2), (args, code, err)
    assert "Traceback" not in out + err, (args, err)
    if code == 0:
        assert not err, (args, err)
        assert "parameters" in out
        return ""
    assert len(err.splitlines()) == 1, (args, err)
    assert err.startswith("lbsgd: "), (args, err)
    return err


def check_commands(many: list[list[str]]) -> list[str]:
    """Two at a time: most of each is the start of Python."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(check_command, many))


def argument(random: random.Random) -> str:
    """A key of the config, or one misspelt, and a value as a person types it."""
    key = random.choice(sorted(DEFAULTS))
    pool = {bool: ["", "False"], int: INTEGERS[:-1], float: FLOATS, str: TEXTS, tuple: TUPLES[:-2]}
    pool |= {dict: ["{}", 3]}
    kind = random.choice([type(DEFAULTS[key])] * 4 + list(pool))
    value = random.choice([*KEYS[key].choices] or pool[kind])
    if random.random() < 0.1:
        key = misspelt(key, random.randrange(99), "x")
    return f"--config.{key}={value}".replace("\0", "").replace("\ud800", "\udc80")


def arguments(seed: int) -> list[str]:
    chosen = random.Random(seed)
    return ["--config=configs/digits.py"] + [
        argument(chosen) for _ in range(chosen.choice([1, 1, 2, 4]))
    ]


@pytest.mark.long
def test_some_command_lines_are_a_run_or_a_line():
    plain, *_ = check_commands([["--config=configs/digits.py"], *map(arguments, range(3))])
    assert not plain


@pytest.mark.long
def test_any_command_line_is_a_run_or_a_line():
    lines = check_commands([arguments(seed) for seed in range(4, 134)])
    assert 20 < lines.count("") < 110


STRANGE = [
    ["--config.=1"],
    ["--config..x=1"],
    ["--config.data.=1"],
    ["--config.data.flip=maybe"],
    ["--config.data.mean=(0.1,"],
    ["--config.data.mean=__import__('os').system('id')"],
    ["--config.data.mean[0]=1"],
    ["--config.seed="],
    ["--config.seed=" + "9" * 5000],
    ["--config.total_epochs=1e400"],
    ["--config.learning_rate.decay_epochs={'a':1}"],
    ["--config.\udc80=3"],
    ["--config.a\nb=3"],
    ["--config.__class__=3"],
    ["--config.batch_size.real=3"],
    ["--explain=maybe"],
    ["--num_processes=abc"],
    ["--process_id=1"],
    ["--", "x"],
    ["-"],
]


@pytest.mark.parametrize("args", [pytest.param(args, marks=pytest.mark.long) for args in STRANGE])
def test_a_strange_argument_is_a_line(args):
    assert check_command(["--config=configs/digits.py", *args])


QUICK = {"ends", "a list"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK)) for name in FILES]
)
def test_a_file_that_is_no_config_is_a_line(name, tmp_path):
    text, says = FILES[name]
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    line = check_command([f"--config={path}"])
    assert re.search(says, line.strip()), line
