"""`lbsgd checkpoint`: what people see of checkpoints, and the exit codes."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hanging import HANG_SECONDS

from lbsgd.checkpoint import command, manifest
from lbsgd.checkpoint.saving import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent.parent
IDENTITY = {"seed": 0, "model": {"name": "resnet\x1b[31m"}}
KERNEL = jnp.array([[3.0, -4.0], [0.0, 0.0]])


@pytest.fixture
def workdir(tmp_path):
    """Of a run with the checkpoints 9 and 10, and a save that was interrupted."""
    folder = tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(folder, 5, IDENTITY, say=pytest.fail)
    for update in (9, 10):
        checkpoints.save(update, {"kernel": KERNEL, "n": jnp.array(update, jnp.int32)})
    checkpoints.close()
    (folder / "11.orbax-checkpoint-tmp").mkdir()
    return tmp_path / "run"


@pytest.fixture
def cli(capsys):
    """Runs a command: (exit code, lines of stdout, stderr)."""

    def run(*args):
        code = command.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def harm(workdir, update):
    path = workdir / "checkpoints" / str(update) / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))


REASON = "its manifest does not have the checksum that it names"


def test_list(workdir, cli):
    code, lines, err = cli("list", workdir)
    assert (code, err) == (0, "")
    assert lines[0].split() == ["update", "MB", "written", "state"]
    assert [line.split()[0] for line in lines[1:3]] == ["9", "10"]
    for line in lines[1:3]:
        assert line.endswith("whole; `verify` reads it")
        assert line.split()[2].startswith("20")
    assert lines[3:] == [
        "11.orbax-checkpoint-tmp: a save that is under way, or was interrupted; never used"
    ]


def test_list_of_damaged_ones(workdir, cli):
    harm(workdir, 9)
    code, lines, _ = cli("list", workdir)
    assert code == 0
    assert lines[1].split()[:3] == ["9", "?", "?"]
    assert lines[1].endswith(f"damaged: {REASON}")
    assert lines[2].endswith("whole; `verify` reads it")


def test_verify(workdir, cli):
    folder = workdir / "checkpoints"
    for where in (workdir, folder):
        code, lines, err = cli("verify", where)
        assert (code, err, len(lines)) == (0, "", 2)
        assert lines[0].startswith(f"{folder / '9'}: ok, 2 arrays of 0.0 MB, written 20")
        assert lines[1].startswith(f"{folder / '10'}: ok, ")


def test_verify_finds_damage(workdir, cli):
    folder = workdir / "checkpoints"
    harm(workdir, 9)
    code, lines, err = cli("verify", workdir)
    assert (code, err) == (1, "")
    assert lines[0] == f"{folder / '9'}: damaged: {REASON}"
    assert lines[1].startswith(f"{folder / '10'}: ok, ")
    assert cli("verify", workdir, 9)[0] == 1
    assert cli("verify", workdir, 10)[0] == 0
    shutil.rmtree(folder / "10" / "state")
    assert cli("verify", workdir, 10)[0] == 1


def test_one_checkpoint_by_its_folder(workdir, cli, monkeypatch):
    """Also a damaged one, one where one is, and though its update is the name of a workdir."""
    folder = workdir / "checkpoints"
    assert cli("verify", folder / "9") == cli("verify", workdir, 9)
    assert cli("show", f"{folder / '9'}/") == cli("show", workdir, 9)
    harm(workdir, 9)
    shutil.rmtree(folder / "9" / "state")
    assert cli("verify", folder / "9")[:2] == (1, [f"{folder / '9'}: damaged: {REASON}"])
    monkeypatch.chdir(folder / "10")
    assert cli("verify", ".") == cli("verify", workdir, 10)
    numbered = workdir / "checkpoints" / "12"
    shutil.copytree(workdir, workdir.parent / "copy")
    (workdir.parent / "copy").rename(numbered)
    assert cli("list", numbered)[1][1].split()[0] == "9"


def test_show(workdir, cli):
    code, lines, err = cli("show", workdir)
    assert (code, err) == (0, "")
    assert lines[0].startswith(f"{workdir / 'checkpoints' / '10'}: 2 arrays of 0.0 MB, written 20")
    assert '    "name": "resnet\\u001b[31m"' in lines
    rows = {line.split()[-2]: line.split() for line in lines[-2:]}
    found = manifest.array_checksum("kernel", np.asarray(KERNEL))[:12]
    assert rows["kernel"] == [found, "5", "-0.25", "kernel", "float32[2,2]"]
    assert rows["n"][1:] == ["10", "10", "n", "int32[]"]
    assert cli("show", workdir, 9)[1][-1].split()[1:] == ["9", "9", "n", "int32[]"]


def test_show_of_a_damaged_one(workdir, cli):
    harm(workdir, 10)
    path = workdir / "checkpoints" / "10"
    assert cli("show", workdir) == (1, [f"{path}: damaged: {REASON}"], "")


def test_nothing_is_changed(workdir, cli):
    harm(workdir, 9)
    before = snapshot(workdir)
    for what in ("list", "verify", "show"):
        cli(what, workdir)
    assert snapshot(workdir) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: command, workdir; --help says more"),
        (["mend", "RUN"], "argument command: invalid choice: 'mend'"),
        (["list"], "the following arguments are required: workdir"),
        (["verify", "RUN", "x"], "argument update: invalid int value: 'x'"),
        (["verify", "RUN", "9", "10"], "unrecognized arguments: 10"),
        (["list", "RUN/none"], "RUN/none is not a folder"),
        (["list", "FILE"], "FILE is not a folder"),
        (
            ["list", "RUN/empty"],
            "there are no checkpoints in RUN/empty; give the workdir of a run, its folder of "
            "checkpoints, or one of them",
        ),
        (["verify", "RUN/checkpoints/8"], "there is no checkpoint 8 in RUN/checkpoints, only"),
        (["verify", "RUN/checkpoints/9", "9"], "there are no checkpoints in RUN/checkpoints/9; "),
        (["show", "RUN", "8"], "there is no checkpoint 8 in RUN/checkpoints, only 9, 10"),
    ],
)
def test_misuse_is_one_line(workdir, cli, args, message):
    (workdir / "empty").mkdir()
    file = workdir / "file"
    file.write_text("")

    def put(text):
        return text.replace("RUN", str(workdir)).replace("FILE", str(file))

    code, lines, err = cli(*map(put, args))
    assert (code, lines) == (2, [])
    assert err.startswith(f"lbsgd: {put(message)}")
    assert err.count("\n") == 1


def test_a_folder_that_cannot_be_read(workdir, cli, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    code, _, err = cli("list", workdir)
    assert (code, err) == (
        2,
        f"lbsgd: {workdir / 'checkpoints'} cannot be read (Permission denied)\n",
    )


def test_it_runs_where_the_accelerator_is_another_s(workdir):
    """As a process, though JAX is told to use what is not there."""
    env = {**os.environ, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(
        [sys.executable, "-m", "lbsgd.main", "checkpoint", "verify", str(workdir)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(": ok, ") == 2


@pytest.mark.parametrize(
    "line",
    [
        "list {} | true",
        pytest.param("verify {} >/dev/full", marks=pytest.mark.long),
        pytest.param("show {} >&-", marks=pytest.mark.long),
    ],
)
def test_nobody_needs_to_read_it(workdir, line):
    start = f"{sys.executable} -m lbsgd.main checkpoint {line.format(workdir)}"
    text = f"{start}; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}  # so that each line finds nobody
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
