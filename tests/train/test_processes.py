"""Several processes without a launcher: they stop together, and none is left when one fails."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from hanging import HANG_SECONDS

from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
ARGS = [
    "--config=configs/digits.py",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.learning_rate.warmup_epochs=0.5",
    "--config.log.sinks=()",
]


def start(workdir: pathlib.Path, *args: str, folder: pathlib.Path = ROOT) -> subprocess.Popen:
    """Starts a process with the lbsgd and the configs of a folder."""
    command = [sys.executable, "-m", "lbsgd.main", *ARGS, f"--workdir={workdir}", *args]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def start_group():
    """Starts two processes of a run; none is left after the test."""
    started: list[subprocess.Popen] = []

    def begin(
        *args: str, each: tuple[tuple[str, ...], ...] = ((), ()), folders=(ROOT, ROOT)
    ) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        flags = [f"--coordinator=localhost:{port}", "--num_processes=2"]
        for i, own in enumerate(each):
            workdir, *rest = (*own, *args)
            rank = f"--process_id={i}"
            started.append(start(pathlib.Path(workdir), *flags, rank, *rest, folder=folders[i]))
        return started

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for(line: str, process: subprocess.Popen) -> str:
    """What a process says, up to the line with these words."""
    said = ""
    for text in process.stdout:
        said += text
        if line in text:
            return said
    raise AssertionError(said)


def ends(process: subprocess.Popen) -> tuple[int, str]:
    out, _ = process.communicate(timeout=HANG_SECONDS)
    return process.returncode, out


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_processes_stop_together_and_go_on(tmp_path, start_group, number):
    group = start_group("--config.total_steps=4000", each=((str(tmp_path),),) * 2)
    wait_for("validation loss", group[0])
    group[1].send_signal(number)  # one alone: the other learns of it
    for process in group:
        code, out = ends(process)
        assert code == 75, out
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_a_survivor_ends_when_the_other_is_killed(tmp_path, start_group, killed):
    """Its collective fails, or the coordinator is gone: it ends long before the heartbeat."""
    group = start_group("--config.total_steps=4000", each=((str(tmp_path),),) * 2)
    wait_for("validation loss", group[0])
    group[killed].kill()
    code, out = ends(group[1 - killed])
    assert code in (1, -signal.SIGABRT), out
    if code == 1:
        assert "lbsgd: a collective failed: see what the other processes say" in out
        assert "JaxRuntimeError" in (tmp_path / "logs" / f"{1 - killed}.log").read_text()


@pytest.mark.long
def test_a_survivor_ends_when_the_other_hangs(tmp_path, start_group):
    """Stopped, it sends no heartbeat; JAX aborts the other from C++."""
    group = start_group(
        "--config.total_steps=4000",
        "--config.runtime.heartbeat_seconds=5",
        each=((str(tmp_path),),) * 2,
    )
    wait_for("validation loss", group[0])
    group[1].send_signal(signal.SIGSTOP)
    code, out = ends(group[0])
    assert code in (1, -signal.SIGABRT), out


@pytest.mark.long
def test_a_mistake_that_process_0_finds_ends_all(tmp_path, start_group):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1}\n')
    (tmp_path / "config.json").write_text(json.dumps({"run": {}, "config": {}}))
    group = start_group("--config.total_steps=8", each=((str(tmp_path),),) * 2)
    code, out = ends(group[0])
    assert code == 2
    assert "choose another --workdir" in out
    code, out = ends(group[1])
    assert code == 2
    assert "lbsgd: process 0 found a mistake, and says which" in out


@pytest.mark.long
@pytest.mark.parametrize("key", ["batch_size=512", "accumulation_steps=2", "accumulation_steps=0"])
def test_processes_with_different_configs_do_not_start(tmp_path, start_group, key):
    """Else they would train one network in two ways, or wait for each other for ever."""
    each = ((str(tmp_path),), (str(tmp_path), f"--config.{key}"))
    group = start_group("--config.total_steps=8", each=each)
    (code, said), (other_code, other_said) = map(ends, group)
    assert (code, other_code) == (2, 2), (said, other_said)
    assert "lbsgd: a process differs from process 0, and says in what" in said
    name, value = key.split("=")
    assert re.search(
        rf"process 1 differs from process 0 in {name} \(.* there, {value} here\)", other_said
    )
    assert not (tmp_path / "config.json").exists()


@pytest.mark.long
def test_processes_with_different_commits_are_told_and_train(tmp_path, start_group):
    """One of them from a copy that no git knows of."""
    for name in ("lbsgd", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name)
    run = str(tmp_path / "run")
    folders = (ROOT, tmp_path / "copy")
    group = start_group("--config.total_steps=8", each=((run,), (run,)), folders=folders)
    (code, said), (other_code, other_said) = map(ends, group)
    assert (code, other_code) == (0, 0), (said, other_said)
    commit = json.loads((tmp_path / "run" / "machine.json").read_text())[-1]["git_commit"]
    line = "the processes run different commits of the code: "
    assert f"{line}{commit} (process 0); unknown (process 1)\n" in said
    assert line in (tmp_path / "run" / "logs" / "1.log").read_text()


@pytest.mark.long
def test_a_process_whose_others_do_not_come_says_so_and_ends(tmp_path):
    begun = time.monotonic()
    process = start(
        tmp_path,
        "--coordinator=127.0.0.1:1",
        "--num_processes=2",
        "--process_id=1",
        "--config.runtime.start_seconds=15",
    )
    code, out = ends(process)
    assert "lbsgd: process 1 of 2 at 127.0.0.1:1 waits for the other processes; ends " in out
    assert code == -signal.SIGABRT
    assert time.monotonic() - begun > 10


@pytest.mark.long
def test_only_process_0_needs_the_workdir_and_speaks(tmp_path, start_group):
    group = start_group(
        "--config.total_steps=8",
        each=((str(tmp_path / "first"),), (str(tmp_path / "second"),)),
    )
    (code, said), (other_code, other_said) = map(ends, group)
    assert (code, other_code) == (0, 0), (said, other_said)
    assert re.search("8 updates", said)
    assert "update" not in other_said
    names = {path.name for path in (tmp_path / "second").rglob("*")}
    assert names == {"logs", "1.log"}
    assert "process 1 of 2: pid " in (tmp_path / "second/logs/1.log").read_text()
    assert os.listdir(tmp_path / "first/checkpoints") == ["8"]
