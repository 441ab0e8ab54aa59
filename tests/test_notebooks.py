"""The notebooks run from top to bottom."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from hanging import HANG_SECONDS

ROOT = pathlib.Path(__file__).parent.parent


# What each leaves behind.
NOTEBOOKS = {
    "quickstart.ipynb": "runs/quickstart/curves.png",
    "ablation.ipynb": "runs/ablation/report.html",
}


def test_every_notebook_is_run():
    assert {path.name for path in ROOT.glob("notebooks/*.ipynb")} == NOTEBOOKS.keys()


@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path):
    """In a copy of the tree, where what it trains leaves no trace."""
    for part in ("configs", "lbsgd", "notebooks"):
        shutil.copytree(ROOT / part, tmp_path / part)
    cells = json.loads((tmp_path / "notebooks" / name).read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validation error" in done.stdout
    assert (tmp_path / NOTEBOOKS[name]).exists()
