"""The launcher's command line, the devices that its processes get, and runs in it."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from launching import ROOT, finish, said

from lbsgd.launch import local
from lbsgd.run.record.metrics import read_metrics
from lbsgd.system.errors import ConfigError


def test_launcher_needs_no_jax():
    code = (
        "import sys; from lbsgd.main import main; main(['launch', '--num_processes=2']); "
        "print({'jax', 'numpy', 'absl'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# Devices


@pytest.mark.parametrize(
    ("platform", "processes", "each", "gpus", "found"),
    [
        ("auto", 2, None, "", [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}] * 2),
        ("cpu", 1, 4, "0 1", [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}]),
        ("auto", 2, None, "0 1", ["0", "1"]),
        ("auto", 2, None, "4 5 6 7", ["4,5", "6,7"]),
        ("auto", 1, None, "0 1 2", ["0,1,2"]),
        ("auto", 3, 1, "GPU-a GPU-b GPU-c GPU-d", ["GPU-a", "GPU-b", "GPU-c"]),
        ("auto", 2, 2, "0 1 2 3 4", ["0,1", "2,3"]),
    ],
)
def test_devices_are_split(platform, processes, each, gpus, found):
    found = [{"CUDA_VISIBLE_DEVICES": f} if isinstance(f, str) else f for f in found]
    assert local.split_devices(platform, processes, each, gpus.split()) == found


def test_cuda_when_asked_for_does_not_fall_back():
    assert local.split_devices("cuda", 1, None, ["3"]) == [
        {"CUDA_VISIBLE_DEVICES": "3", "JAX_PLATFORMS": "cuda,cpu"}
    ]


@pytest.mark.parametrize(
    ("processes", "each", "gpus", "text"),
    [
        (2, None, 1, "2 processes with 1 GPU each need 2, but 1 can be used here"),
        (2, 2, 3, "2 processes with 2 GPUs each need 4, but 3 can be used here"),
        (1, None, 0, "1 process with 1 GPU needs 1, but 0 can be used here"),
        (2, None, 3, "3 GPUs cannot be split evenly among 2 processes; say with --devices_per_p"),
    ],
)
def test_gpus_that_do_not_suffice_are_refused(processes, each, gpus, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        local.split_devices("cuda", processes, each, [str(i) for i in range(gpus)])


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        ("0", ["0"]),
        ("3, 1", ["3", "1"]),
        ("GPU-8932f937,MIG-1", ["GPU-8932f937", "MIG-1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,-1,3", ["2"]),
    ],
)
def test_gpus_that_the_environment_lists(listed, gpus):
    assert local.find_gpus({"CUDA_VISIBLE_DEVICES": listed}) == gpus


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'GPU 0: H200 (UUID: GPU-1)'; echo '  MIG 1g'; echo 'GPU 1: H200'", ["0", "1"]),
        ("echo NVIDIA-SMI has failed; exit 9", []),
        ("exit 0", []),
    ],
)
def test_gpus_of_the_machine_are_counted(tmp_path, monkeypatch, script, gpus):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert local.find_gpus({}) == gpus


# The command line

RUN = ["--", "--config", "configs/digits.py"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "the following arguments are required: --num_processes"),
        (RUN, "the following arguments are required: --num_processes"),
        (["--num_processes", "2"], "no config; the run's own flags follow --"),
        (["--num_processes", "2", "--"], "no config; the run's own flags follow --"),
        (["--num_processes=2", "--", "--config.seed=1"], "no config; the run's own flags"),
        (["--num_processes=2", "--config=configs/digits.py"], "unrecognized arguments: --config="),
        (["--num_processes=0", *RUN], "--num_processes: must be a number from 1 on, not '0'"),
        (["--num_processes=two", *RUN], "--num_processes: must be a number from 1 on, not 'two'"),
        (["--num_processes=-1", *RUN], "--num_processes: must be a number from 1 on, not '-1'"),
        (["--num_processes", *RUN], "--num_processes: expected one argument"),
        (["--num_proc=1", *RUN], "the following arguments are required: --num_processes"),
        (["--num_processes=1", "--devices_per_process=0", *RUN], "a number from 1 on, not '0'"),
        (["--num_processes=1", "--max_restarts=-1", *RUN], "a number from 0 on, not '-1'"),
        (["--num_processes=1", "--grace_seconds=0", *RUN], "of seconds above 0, not '0'"),
        (["--num_processes=1", "--grace_seconds=nan", *RUN], "of seconds above 0, not 'nan'"),
        (["--num_processes=1", "--grace_seconds=inf", *RUN], "of seconds above 0, not 'inf'"),
        (["--num_processes=1", "--grace_seconds=1m", *RUN], "of seconds above 0, not '1m'"),
        (["--num_processes=1", "--platform=tpu", *RUN], "invalid choice: 'tpu'"),
        (["--num_processes=1", *RUN, "--process_id=0"], "--process_id after -- is the launcher's"),
        (["--num_processes=1", *RUN, "--num_processes", "3"], "--num_processes after -- is the"),
        (["--num_processes=1", *RUN, "-coordinator=x:1"], "--coordinator after -- is the launch"),
        (["--num_processes=99", "--platform=cuda", *RUN], "99 processes with 1 GPU each need 99"),
    ],
)
def test_misuse_is_one_line(monkeypatch, capsys, argv, text):
    monkeypatch.setattr(local, "launch", lambda *_: pytest.fail("started"))
    assert local.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"lbsgd: .*{re.escape(text)}.*\n", err), err


def started(monkeypatch, argv: list[str]) -> tuple:
    """What main gives to launch, and the exit code that it makes of 75."""
    given = []
    monkeypatch.setattr(local, "launch", lambda *args: given.append(args) or 75)
    assert local.main(argv) == 75
    return given[0]


def test_flags_become_the_start(monkeypatch):
    run = ["--config", "configs/digits.py:a b", "--workdir=$(x); rm", "--", "--"]
    own = ["--num_processes=2", "--devices_per_process", "3", "--platform=cpu"]
    limits = ["--max_restarts=0", "--grace_seconds=1.5"]
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3"}
    assert started(monkeypatch, [*own, *limits, "--", *run]) == (
        [sys.executable, "-m", "lbsgd.main", "train"],
        run,
        [cpu, cpu],
        0,
        1.5,
    )


def test_defaults(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    _, _, environments, restarts, grace = started(monkeypatch, ["--num_processes=2", *RUN])
    assert environments == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "6"}]
    assert (restarts, grace) == (3, 60)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    _, _, environments, *_ = started(monkeypatch, ["--num_processes=2", *RUN])
    assert environments == [{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}] * 2


@pytest.mark.parametrize("gpus", ["", "5,6"])
def test_a_platform_that_the_user_asks_for_is_asked_for(gpus, monkeypatch):
    """Without a GPU too, where the processes say what is missing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    _, _, environments, *_ = started(monkeypatch, ["--num_processes=2", *RUN])
    assert [own["JAX_PLATFORMS"] for own in environments] == ["cuda", "cuda"]


# Runs


DIGITS = [
    "--config=configs/digits.py",
    "--config.dtype=float64",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.learning_rate.warmup_epochs=0.5",
    "--config.log.sinks=()",
]
# JAX keeps what process 0 has compiled alone, so the others compile it every time.
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def start_run(workdir: pathlib.Path, own: list[str], run: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "lbsgd.main", "launch", "--platform=cpu", *own, "--"]
    return subprocess.Popen(
        [*command, *DIGITS, f"--workdir={workdir}", *run],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": QUICKLY_COMPILED},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.long
def test_processes_train_as_one(tmp_path):
    metrics = []
    for own in (["--num_processes=2", "--devices_per_process=2"], ["--num_processes=1"]):
        workdir = tmp_path / own[0]
        code, out, err = finish(start_run(workdir, own, ["--config.total_steps=8"]))
        assert code == 0, out + err
        metrics.append(read_metrics(workdir / "metrics.jsonl"))
    two, one = metrics
    assert len(two) == len(one) > 8
    for there, here in zip(two, one):
        for key in there.keys() - {"images_per_second", "data_wait_percent"}:
            assert there[key] == pytest.approx(here[key], rel=1e-9), key


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_run_goes_on_after_one_of_its_processes_was_killed(tmp_path, victim):
    run = ["--config.total_steps=60", "--config.checkpoint.every_epochs=1"]
    process = start_run(tmp_path, ["--num_processes=2"], run)
    pids = re.findall(r"\d+", process.stderr.readline().decode().partition("pid")[2])
    for line in process.stdout:
        if line.startswith(b"[0] epoch 3"):
            os.kill(int(pids[victim]), signal.SIGKILL)
            break
    code, out, err = finish(process)
    assert code == 0, out + err
    assert len(said(err)) == 1  # without process 0 the other aborts, and need not be ended
    died = said(err)[0].replace(" ending the others;", "")
    text = f"process {victim} died (SIGKILL) after T s; restarting the run (restart 1 of 3)"
    assert died == text
    assert int(re.search(r"^\[0\] resumes after update (\d+)", out, re.MULTILINE).group(1)) > 0
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 60


@pytest.mark.long
def test_a_platform_that_is_not_there_is_a_line_of_each_process(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nosuch")
    command = [sys.executable, "-m", "lbsgd.main", "launch", "--num_processes=2", "--", *DIGITS]
    pipe = subprocess.PIPE
    code, out, err = finish(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe))
    assert (code, out) == (2, ""), err
    lines = sorted(line for line in err.splitlines() if not line.startswith("[launcher] process"))
    assert len(lines) == 2, err
    for process, line in enumerate(lines):
        assert line.startswith(f"[{process}] lbsgd: JAX_PLATFORMS=nosuch: there is no backend")
