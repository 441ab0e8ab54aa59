"""Describes the machine and the versions that a run is made with, for its record."""

import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

REPORTED_PACKAGES = (
    "lbsgd",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "opencv-python-headless",
    "simplejpeg",
)


def cache_folder() -> pathlib.Path | None:
    """Where choices are remembered from run to run; None where the user has no home.

    It need not be there, and it may be that it cannot be written.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return pathlib.Path(folder) / "lbsgd" if os.path.isabs(folder) else None


def describe_machine() -> dict[str, Any]:
    """Versions, hardware and the commit of the code, for the record of a run."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in REPORTED_PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "git_commit": git_commit(os.path.dirname(os.path.abspath(__file__))),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit(folder: str | pathlib.Path) -> str | None:
    """The commit that a Python package in `folder` is of, "-dirty" behind it where it was changed.

    None where no git tracks the package: a repository may lie around the environment that it is
    installed in.
    """
    if not _git(folder, "ls-files", "--error-unmatch", "__init__.py"):
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: str | pathlib.Path, *command: str) -> str | None:
    """What git says there; None where it cannot."""
    # A hook of git has its own repository in GIT_DIR.
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *command],
            env={**own, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
