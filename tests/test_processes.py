"""Several processes train what one does."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from lbsgd import monitor

ROOT = pathlib.Path(__file__).parent.parent
ARGS = [
    "--config=configs/digits.py",
    "--config.dtype=float64",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.learning_rate.warmup_epochs=0.5",
]


def start(workdir: pathlib.Path, devices: int, *args: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lbsgd.main", *ARGS, f"--workdir={workdir}", *args]
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_group(workdir: pathlib.Path, processes: int, *args: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(
            workdir,
            2,
            f"--coordinator=localhost:{port}",
            f"--num_processes={processes}",
            f"--process_id={i}",
            *args,
        )
        for i in range(processes)
    ]


def finish(group: list[subprocess.Popen], code: int = 0) -> None:
    for process in group:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == code, out


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.long)])
def test_processes_train_as_one(tmp_path, processes):
    """3 processes have 6 devices for 8 workers, so one of them has only idle slots."""
    finish(start_group(tmp_path / "many", processes, "--config.total_steps=8"))
    finish([start(tmp_path / "one", 1, "--config.total_steps=8")])
    many, one = (monitor.read_metrics(tmp_path / w / "metrics.jsonl") for w in ("many", "one"))
    assert len(many) == len(one) == 10  # 8 updates, evaluated after the first epoch and the last
    for there, here in zip(many, one):
        for key in ("images_per_second", "data_wait_percent"):
            there.pop(key, None)
        there.pop("val_loss", None)
        for key in there:
            assert there[key] == pytest.approx(here[key], rel=1e-9), key


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_stop_together_and_go_on(tmp_path, number):
    group = start_group(tmp_path, 2, "--config.total_steps=4000")
    for line in group[0].stdout:
        if "validation" in line:
            break
    group[1].send_signal(number)  # one alone: the other learns of it
    finish(group, code=75)
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == monitor.read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
