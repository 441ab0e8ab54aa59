"""A disk that is full, and a process that is killed: the last good checkpoint stays."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
from hanging import HANG_SECONDS
from two_checkpoints import restored, state

from lbsgd.checkpoint import store

ROOT = pathlib.Path(__file__).parent.parent.parent

COMMON = """
    import json, os, pathlib, resource, shutil, signal, subprocess, sys
    import jax.numpy as jnp
    import numpy as np
    from lbsgd.checkpoint import saving, store
    from lbsgd.checkpoint.saving import Checkpoints

    def state(update):
        values = np.random.default_rng(update).standard_normal((3, 1000), np.float32)
        return {
            "kernel": values, "scale": np.full((5,), update, jnp.bfloat16),
            "count": np.array(update, np.int32), "empty": np.zeros((0, 2), np.float32),
        }
"""

FULL = """
    mode, root, first, last, step = sys.argv[1], pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:])
    if mode != "limit":
        size = "size=512k" if mode == "pages" else "size=512k,nr_inodes=200"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", root], check=True)
    fill = root / "fill"

    def exit_distributed(room):
        if mode == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        elif mode == "pages":
            fill.write_bytes(b"x" * 4096 * max(0, os.statvfs(root).f_bavail - room))
        else:
            fill.mkdir()
            for i in range(os.statvfs(root).f_ffree - room):
                (fill / str(i)).touch()

    def unlimit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        shutil.rmtree(fill) if fill.is_dir() else fill.unlink(missing_ok=True)

    # What there was of a checkpoint when it failed.
    phases, clear = [], saving.Checkpoints._clear
    def watched(self, update):
        phases.append(sorted({p.name for p in self._folder.glob(f"{update}*/**/*")}))
        clear(self, update)
    saving.Checkpoints._clear = watched

    for room in range(first, last, step):
        folder, said, phases[:] = root / "checkpoints", [], []
        before = Checkpoints(folder, 1, {}, say=said.append)
        before.save(1, state(1))
        before.close()
        now = Checkpoints(folder, 1, {}, say=said.append)
        now.restore(state(0))
        exit_distributed(room)
        now.save(2, state(2))
        now.close()
        left = sorted(os.listdir(folder))
        after = Checkpoints(folder, 1, {}, say=said.append)
        update, found = after.restore(state(0))
        same = all(found[k].tobytes() == x.tobytes() for k, x in state(update).items())
        unlimit()
        now.save(3, state(3))  # there is room again
        now.close()
        print(json.dumps([room, update, same, said, left, now.newest, phases]))
        shutil.rmtree(folder)
"""


def run_script(script, *args, prefix=()):
    text = textwrap.dedent(COMMON) + textwrap.dedent(script)
    return subprocess.run(
        [*prefix, sys.executable, "-c", text, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


def can_mount(path):
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(path)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("mode", "rooms", "words"),
    [
        # Bytes that a file may have: anywhere, with no rights at all.
        ("limit", (0, 15_000, 2500), "File too large"),
        pytest.param("limit", (0, 14_000, 70), "File too large", marks=pytest.mark.long),
        # Pages, and files, that a real file system has left.
        pytest.param("pages", (0, 44, 1), "No space left on device", marks=pytest.mark.long),
        pytest.param("inodes", (0, 30, 1), "No space left on device", marks=pytest.mark.long),
    ],
)
def test_a_full_disk_at_every_phase(tmp_path, mode, rooms, words):
    """Training goes on, the last good one stays, and is replaced once there is room."""
    if mode != "limit" and not can_mount(tmp_path):
        pytest.skip("no right to mount a file system; the case `limit` needs none")
    prefix = () if mode == "limit" else ("unshare", "-rm")
    done = run_script(FULL, mode, tmp_path, *rooms, prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no traceback of a library either
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(range(*rooms))
    seen, failed = set(), 0
    for room, update, same, said, left, newest, phases in results:
        assert same, room
        assert newest == 3
        if update == 2:
            assert (said, left) == ([], ["2"]), room
            continue
        failed += 1
        assert update == 1
        [line] = said
        assert line.startswith(f"checkpoint 2 could not be written ({words}")
        assert line.endswith("); training goes on, the newest good one is 1")
        seen |= {name for phase in phases for name in phase}
    assert 0 < failed < len(results)
    # Of the first and the last that is written, and of what comes between.
    assert {"_CHECKPOINT_METADATA", "metadata", "manifest.ocdbt"} <= seen


KILL = """
    # Ends this process at the n-th thing it does to files, or at the first write beyond n bytes.
    mode, root, numbers = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
    EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree",
              "os.scandir", "os.listdir")

    def arm(number):
        count = 0
        def hook(event, args):
            nonlocal count
            if event in EVENTS:
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        if mode == "events":
            sys.addaudithook(hook)
        else:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))

    def child(folder, number):
        checkpoints = Checkpoints(folder, 1, {"seed": 0}, say=print)
        checkpoints.restore(state(0))
        arm(number)
        checkpoints.save(3, state(3))
        checkpoints.close()

    for number in numbers:
        pid = os.fork()
        if pid == 0:
            try:
                child(root / str(number), number)
            finally:
                os._exit(0)
        print(number, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.parametrize(
    ("mode", "numbers", "by"),
    [
        ("events", range(1, 170, 14), signal.SIGKILL),
        pytest.param("bytes", range(0, 13_000, 2500), signal.SIGXFSZ, marks=pytest.mark.long),
        pytest.param("events", range(1, 200), signal.SIGKILL, marks=pytest.mark.long),
        pytest.param("bytes", range(0, 13_000, 60), signal.SIGXFSZ, marks=pytest.mark.long),
    ],
)
def test_a_process_killed_at_any_moment(pristine, tmp_path, mode, numbers, by):
    """It leaves 2, or a whole 3, and nothing between is ever used."""
    numbers = [*numbers, 10**6]  # the last gets through
    for number in numbers:
        shutil.copytree(pristine, tmp_path / str(number))
    done = run_script(KILL, mode, tmp_path, json.dumps(numbers))
    assert done.returncode == 0, done.stderr
    codes = dict(map(int, line.split()) for line in done.stdout.splitlines() if line[0].isdigit())
    assert set(codes) == set(numbers), done.stdout
    outcomes, leftovers = set(), 0
    for number in numbers:
        folder = tmp_path / str(number)
        leftovers += len(store.leftovers_in(folder))
        update, said = restored(folder)
        assert said == []
        assert update in (2, 3)
        assert store.leftovers_in(folder) == []
        outcomes.add((codes[number] == -by, update))
    assert (True, 2) in outcomes
    assert leftovers > 0
    assert (False, 3) in outcomes


def test_the_scripts_save_what_is_compared_here():
    namespace: dict = {}
    exec(textwrap.dedent(COMMON), namespace)
    for name, array in namespace["state"](3).items():
        assert array.tobytes() == np.asarray(state(3)[name]).tobytes()
    assert isinstance(namespace["store"], types.ModuleType)
