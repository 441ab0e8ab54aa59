"""Tests that XLA's programs are kept in the user's cache folder, never in the way of a run."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from hanging import HANG_SECONDS

from lbsgd.system import cache

ROOT = pathlib.Path(__file__).parents[2]
OF_JAX = "JAX_COMPILATION_CACHE_DIR"
# A process that sets up as a command does, compiles, and tells what came of it.
SCRIPT = """
import json, os, sys
{first}
from lbsgd.system.libraries import set_up_libraries
set_up_libraries()
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name.rpartition("/")[2]))
assert jax.jit(lambda x: jnp.sin(x) + 1)(jnp.zeros(3)).tolist() == [1, 1, 1]
print(json.dumps([jax.config.jax_compilation_cache_dir, found.count("cache_hits")]))
"""


def start(first: str = "", **environment: str | None) -> tuple[str | None, int, str]:
    """Tells where a new process keeps compiled programs, how many it found, and its stderr."""
    names = (OF_JAX, "HOME", "XDG_CACHE_HOME")
    kept = {key: value for key, value in os.environ.items() if key not in names}
    least = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(first=first)],
        env=kept | least | environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return *json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_second_start_finds_what_the_first_has_compiled(tmp_path):
    folder, hits, _ = start(HOME=str(tmp_path))
    assert pathlib.Path(folder).parent == tmp_path / ".cache" / "lbsgd" / "xla"
    assert hits == 0
    again, hits, said = start(HOME=str(tmp_path))
    assert (again, said) == (folder, "")
    assert hits > 0


@pytest.mark.long
def test_a_damaged_file_is_a_line_and_is_replaced(tmp_path):
    folder, _, _ = start(HOME=str(tmp_path))
    files = list(pathlib.Path(folder).glob("*-cache"))
    for file in files:  # as of a process that was killed as it wrote
        file.write_bytes(file.read_bytes()[:-9])
    _, hits, said = start(HOME=str(tmp_path))
    assert hits == 0
    assert said.count("\n") == said.count("is compiled anew, for what is kept of it cannot") > 0
    _, hits, said = start(HOME=str(tmp_path))
    assert (hits, said) == (len(files), "")


@pytest.mark.parametrize(
    ("first", "chosen"),
    [
        ("", {OF_JAX: "{tmp}/own"}),
        pytest.param(
            "import jax; jax.config.update('jax_compilation_cache_dir', '{tmp}/own')",
            {},
            marks=pytest.mark.long,
        ),
        pytest.param("", {OF_JAX: ""}, marks=pytest.mark.long),
        ("", {"JAX_ENABLE_COMPILATION_CACHE": "0"}),
        pytest.param(
            "import jax; jax.config.update('jax_enable_compilation_cache', False)",
            {},
            marks=pytest.mark.long,
        ),
    ],
)
def test_what_the_user_says_of_it_counts(first, chosen, tmp_path):
    given = {name: text.format(tmp=tmp_path) for name, text in chosen.items()}
    folder, hits, said = start(first.format(tmp=tmp_path), **{"HOME": str(tmp_path), **given})
    own = tmp_path / "own"
    assert (folder or None) == (str(own) if own.exists() else None)
    assert (hits, said) == (0, "")
    assert not (tmp_path / ".cache" / "lbsgd").exists()


@pytest.mark.long
def test_a_config_file_that_imports_jax_changes_nothing(tmp_path):
    folder, _, _ = start("import jax", HOME=str(tmp_path))
    assert list(pathlib.Path(folder).glob("*-cache"))


@pytest.fixture
def nothing_said(monkeypatch):
    """Leaves open where to keep what is compiled, as in a process of its own."""
    monkeypatch.setattr(cache, "_is_said", lambda: False)
    monkeypatch.delenv(OF_JAX, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("what", ["no home", "a file", "no folder", "others may write", "theirs"])
def test_where_no_folder_is_the_users_nothing_is_kept(what, nothing_said, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    there = cache._folder()
    if what == "no home":
        monkeypatch.setenv("HOME", "nowhere")
    elif what == "a file":
        (tmp_path / ".cache").write_text("")
    elif what == "no folder":
        monkeypatch.setenv("HOME", "/dev/null")
    elif what == "others may write":
        there.mkdir(parents=True)
        there.chmod(0o777)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 2**31)
    cache.keep_compiled()
    assert OF_JAX not in os.environ


def test_a_folder_that_cannot_be_written_is_left(nothing_said, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # as not of root
    cache.keep_compiled()
    assert OF_JAX not in os.environ


def test_the_default_is_for_a_process_alone(nothing_said, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", str(cache._folder()))
    assert cache.explain_kept() == f"compiled programs: kept in {cache._folder()}"
    cache.keep_for_one_process()
    assert jax.config.jax_compilation_cache_dir is None
    assert cache.explain_kept().startswith("compiled programs: kept nowhere")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "shared"))
    cache.keep_for_one_process()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "shared")


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    for age, name in enumerate("abcd"):
        path = tmp_path / name / "file"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    os.utime(tmp_path / "d" / "file", (2000, 10))  # written first, and read last
    cache.remove_oldest(tmp_path, 250)
    assert sorted(path.parent.name for path in tmp_path.rglob("file")) == ["a", "d"]
    cache.remove_oldest(tmp_path / "missing", 0)
