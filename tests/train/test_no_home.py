"""Users without a home, and homes that cannot be written."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# As a user without an entry in /etc/passwd, whose number nobody has.
NOBODY = "import os, runpy; os.getuid = lambda: 2**31; runpy.run_module({!r}, run_name='__main__')"


DIGITS = f"--config={ROOT / 'configs' / 'digits.py'}"


def without_home(folder: pathlib.Path, home: str | None, module: str, *args: str):
    """The end of a command in this folder."""
    names = ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "JAX_COMPILATION_CACHE_DIR")
    env = {key: value for key, value in os.environ.items() if key not in names}
    env["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-c", NOBODY.format(module), *args],
        cwd=folder,
        env=env if home is None else {**env, "HOME": home},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
@pytest.mark.parametrize("home", [None, "/dev/null", "/dev/null/nowhere"])
def test_a_run_needs_no_home(home, tmp_path):
    small = ("--config.model.width=0.25", "--config.learning_rate.warmup_epochs=0.1")
    length = ("--config.total_epochs=0", "--config.total_steps=2")
    done = without_home(tmp_path, home, "lbsgd.main", DIGITS, *small, *length, "--workdir=run")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0
    done = without_home(tmp_path, home, "lbsgd.main", "checkpoint", "verify", "run")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_workdir_in_a_home_that_is_not_there_is_a_line(tmp_path):
    done = without_home(tmp_path, None, "lbsgd.main", DIGITS, "--workdir=~/run")
    assert done.returncode == 2
    assert done.stderr == "lbsgd: ~/run: this user has no home; set HOME, or write the path out\n"
    assert not list(tmp_path.iterdir())
