"""Description of the machine and the software versions that a run used, for its record."""

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


def describe_machine() -> dict[str, Any]:
    """Collects versions, hardware and the commit of the code, for the record of a run."""
    return {
        "python": platform.python_version(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "git_commit": git_commit(os.path.dirname(os.path.abspath(__file__))),
    }


def package_versions() -> dict[str, str | None]:
    """Returns the versions of the packages that decide what a run computes; None if missing."""
    return {name: _version(name) for name in REPORTED_PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit(folder: str | pathlib.Path) -> str | None:
    """Returns the git commit of the Python package in `folder`, with "-dirty" if it was changed.

    None if git does not track the package: the environment that it is installed in may lie inside
    another repository.
    """
    if not _git(folder, "ls-files", "--error-unmatch", "__init__.py"):
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: str | pathlib.Path, *command: str) -> str | None:
    """Runs git in a folder and returns its output; None if it fails."""
    # Within a git hook, GIT_DIR and others would point git to the repository of the hook.
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
