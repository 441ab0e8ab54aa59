"""The package installs in silence, with all of its modules."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BUILD = "import sys, setuptools.build_meta as s; print(getattr(s, sys.argv[1])('out'))"


@pytest.fixture
def project(tmp_path):
    """A copy to build in, for a build leaves its traces."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("lbsgd", "configs"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    return tmp_path


def build(project: pathlib.Path, kind: str) -> zipfile.ZipFile:
    """What pip installs, built as pip has it built; a warning is an error."""
    version = next((d.version for d in importlib.metadata.distributions(name="setuptools")), "0")
    if int(version.split(".")[0]) < 77:
        pytest.skip("no setuptools here that is as new as pyproject.toml asks for")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", BUILD, kind],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(project / "out" / done.stdout.splitlines()[-1])


def test_an_editable_installation_warns_of_nothing(project):
    with build(project, "build_editable") as wheel:
        [path] = [name for name in wheel.namelist() if name.endswith(".pth")]
        assert wheel.read(path).decode().strip() == str(project)


def test_an_installation_has_every_module_the_command_and_no_more(project):
    with build(project, "build_wheel") as wheel:
        [scripts] = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
        assert wheel.read(scripts).decode().split() == [
            "[console_scripts]",
            "lbsgd",
            "=",
            "lbsgd.main:run",
        ]
        installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = [*ROOT.glob("lbsgd/**/*.py"), *ROOT.glob("lbsgd/experiments/page/*")]
    assert installed == {str(path.relative_to(ROOT)) for path in files}
