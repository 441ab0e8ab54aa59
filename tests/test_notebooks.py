"""The notebooks run from top to bottom."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("notebooks/*.ipynb")))
def test_notebook_runs(name, tmp_path):
    """In a copy of the tree, where what it trains leaves no trace."""
    for part in ("configs", "lbsgd", "notebooks"):
        shutil.copytree(ROOT / part, tmp_path / part)
    command = [sys.executable, "-m", "IPython", "--no-banner", f"notebooks/{name}"]
    env = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "validation error" in done.stdout
    assert (tmp_path / "runs" / "quickstart" / "curves.png").exists()
