"""Environments of their own for tests of what is not installed beside lbsgd."""

import pathlib
import subprocess
import sysconfig
import venv


def make_environment(folder: pathlib.Path, *packages: str) -> pathlib.Path:
    """Makes an environment that has these packages besides those of this one; returns its python.

    What they need in another version than is here they get there, and nothing changes here.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    there = subprocess.check_output([python, "-c", where], text=True).strip()
    pathlib.Path(there, "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python
