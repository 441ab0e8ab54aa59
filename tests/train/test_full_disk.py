"""A disk that fills up while a run trains, and is cleared again, or not."""

import pathlib
import re
import subprocess
import sys

import pytest
from hanging import HANG_SECONDS

from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]

# Trains 20 updates, with a checkpoint after every second; the disk is full between two updates.
RUN = """
import os, pathlib, resource, signal, subprocess, sys

folder, mode, full, cleared, on_error = sys.argv[1:]
root = pathlib.Path(folder)
if mode == "disk":
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

from lbsgd import train
from lbsgd.run.config import default_config, resolve
from lbsgd.system.errors import ConfigError

def fill():
    if mode == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
        return
    with (root / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def clear():
    if mode == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    else:
        (root / "filler").unlink(missing_ok=True)

def between(done):
    if done == int(full):
        fill()
    if done == int(cleared):
        clear()
    return False

config = default_config()
config.update({
    "batch_size": 64, "worker_batch_size": 16, "total_steps": 20, "devices": 1,
    "model": {"name": "cifar_resnet8", "width": 0.25},
    "learning_rate": {"reference_batch_size": 16, "warmup": "none"},
    "checkpoint": {"every_steps": 2, "on_error": on_error},
    "log": {"every_steps": 1},
})
try:
    print(train.run(resolve(config), root / "run", should_stop=between).complete)
except ConfigError as error:
    print("ConfigError:", error)
clear()
(root.parent / "metrics.jsonl").write_bytes((root / "run/metrics.jsonl").read_bytes())
"""


def can_mount(path: pathlib.Path) -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(path)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(params=["limit", pytest.param("disk", marks=pytest.mark.long)])
def run(request, tmp_path):
    """Runs it: what it said, and the steps in its metrics."""
    if request.param == "disk" and not can_mount(tmp_path):
        pytest.skip("no right to mount a file system; the case `limit` needs none")
    prefix = ["unshare", "-rm"] if request.param == "disk" else []

    def begin(full: int, cleared: int, on_error: str = "continue") -> tuple[str, list[int]]:
        (tmp_path / "disk").mkdir()
        args = map(str, (tmp_path / "disk", request.param, full, cleared, on_error))
        command = [*prefix, sys.executable, "-c", RUN, *args]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS
        )
        assert done.returncode == 0, done.stderr
        lines = read_metrics(tmp_path / "metrics.jsonl")
        return done.stdout, [line["step"] for line in lines if "train_loss" in line]

    return begin


@pytest.mark.long
@pytest.mark.parametrize("full", [5, 0])
def test_a_run_outlives_a_full_disk_and_loses_no_line(run, full):
    said, steps = run(full=full, cleared=15)
    assert steps == list(range(1, 21))
    # The save before may be under way when the disk fills up.
    newest = "(2|4)" if full else "0"
    lost = rf"checkpoint \d+ could not be .*; training goes on, the newest good one is {newest}\n"
    assert re.search(rf"{lost}|no checkpoint of update \d+; training goes on\n", said)
    assert said.splitlines()[-1] == "True"


@pytest.mark.long
def test_a_last_checkpoint_that_cannot_be_written_is_no_success(run):
    said, steps = run(full=11, cleared=-1)
    assert len(steps) < 20
    assert re.search(
        r"ConfigError: .*, so there is no checkpoint of update 20; the newest good checkpoint is "
        r".*/(8|10); once .*/run can be written again, the same command resumes from there",
        said,
    )


@pytest.mark.long
def test_a_run_may_be_told_to_stop(run):
    said, _ = run(full=11, cleared=-1, on_error="stop")
    assert re.search(r"ConfigError: .*(cannot|could not) be written .*", said)
    assert "validation" not in said.splitlines()[-1]
