"""Devices, memory and processes."""

import os
import pathlib
import shutil
import subprocess

import jax
import pytest

from lbsgd.run.config import default_config
from lbsgd.system.cache import cache_folder
from lbsgd.system.devices import count_devices, device_memory, explain_out_of_memory
from lbsgd.system.errors import ConfigError
from lbsgd.system.machine import describe_machine, git_commit
from lbsgd.system.processes import commits_line


def test_devices_are_those_asked_for_or_all():
    assert count_devices(0) == 8
    assert count_devices(5) == 5
    with pytest.raises(ConfigError, match="devices=9, but there are only 8"):
        count_devices(9)


def test_memory_of_a_device_is_asked_or_given():
    config = default_config()
    config.device_memory_gib = 1.5
    assert device_memory(config) == 3 * 2**29


def test_devices_that_are_the_cpu_share_half_of_its_memory():
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < device_memory(default_config()) <= machine // 2 // 8


def test_a_device_that_does_not_tell_its_memory_is_a_line(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "other")
    with pytest.raises(ConfigError, match="which other does not tell; set device_memory_gib"):
        device_memory(default_config())


OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 3221225472 bytes."


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            jax.errors.JaxRuntimeError(OUT_OF_MEMORY),
            r"is \(3.00 GiB were asked for at once\); less",
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room"), "is; less"),
        (MemoryError("Unable to allocate 3 GiB"), "is; less"),
    ],
)
def test_memory_that_has_run_out_is_a_line(error, says):
    with (
        pytest.raises(ConfigError, match="^it needs more memory than there " + says),
        explain_out_of_memory("it", "less"),
    ):
        raise error


def test_other_errors_are_left_as_they_are():
    error = jax.errors.JaxRuntimeError("INTERNAL: connection reset")
    with pytest.raises(jax.errors.JaxRuntimeError) as raised, explain_out_of_memory("it", "less"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/lbsgd"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/c"}, "/c/lbsgd"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "c"}, "/home/a/.cache/lbsgd"),  # says the standard
        ({"HOME": "a"}, None),
        ({}, None),
        ({"XDG_CACHE_HOME": "/c"}, "/c/lbsgd"),
    ],
)
def test_the_cache_is_where_the_user_says_or_nowhere(environment, folder, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getuid", lambda: 2**31)  # a user without an entry in /etc/passwd
    assert cache_folder() == (folder and pathlib.Path(folder))


def test_several_processes_use_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="with several processes all 8 devices are used; set"):
        count_devices(4)


def test_the_record_of_the_machine_names_versions_and_hardware():
    record = describe_machine()
    assert record["devices"] == 8
    assert record["backend"] == "cpu"
    assert record["packages"]["jax"] == jax.__version__


def git(folder: pathlib.Path, *command: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(
        ["git", "-C", folder, *own, *command], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a git repository of its own."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # as of a hook that runs the tests
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(folder.parent, "init", "-q", ".")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-qm", "first")
    return folder


def test_the_commit_is_that_of_the_package(package, tmp_path, monkeypatch):
    commit = git(package, "rev-parse", "HEAD")
    assert git_commit(package) == commit
    (tmp_path / "link").symlink_to(package)
    assert git_commit(tmp_path / "link") == commit
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert git_commit(package) == commit
    (package / "__init__.py").write_text("x = 1")
    assert git_commit(package) == f"{commit}-dirty"


@pytest.mark.parametrize("ignored", ["", ".venv", "*"])
def test_a_repository_around_the_environment_is_not_the_code_s(package, ignored):
    """Whether that ignores it or not."""
    installed = package.parent / ".venv" / "site-packages" / "lbsgd"
    shutil.copytree(package, installed)
    (package.parent / ".gitignore").write_text(ignored)
    git(package.parent, "add", "-f", ".gitignore")
    git(package.parent, "commit", "-qm", "second")
    assert git_commit(installed) is None


def test_without_git_or_a_repository_there_is_no_commit(package, tmp_path, monkeypatch):
    (tmp_path / "__init__.py").write_text("")
    assert git_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(package) is None


def test_different_commits_are_told_with_their_processes():
    assert commits_line(["a", "a", "a"]) == ""
    said = commits_line(["a", "b-dirty", "a", "unknown"])
    assert said.endswith(": a (process 0, 2); b-dirty (process 1); unknown (process 3)")
