"""`lbsgd train`, as a user meets it: in a process of its own."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from hanging import HANG_SECONDS

from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py"
SMALL = (
    DIGITS,
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.learning_rate.warmup_epochs=0.1",
)


def lbsgd(*args: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lbsgd.main", *args]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


# What is given, and what the one line must say: what is wrong, and what to do or what is known.
MISTAKES = {
    # Of flags: the others are in run/test_flags.py.
    "unknown key": ([DIGITS, "--config.batchsize=3"], "'batchsize'.*nearest.*'batch_size'"),
    "no run": (["--workdir={tmp}"], "holds no run to resume; begin one there with --config"),
    "not numbers": ([DIGITS, "--config.learning_rate.decay_epochs=(a,b)"], "decay_epochs.*numbers"),
    "kn not k times n": (
        [DIGITS, "--config.batch_size=100"],
        r"100 = 3 x 32 \+ 4\); take 96 or 128",
    ),
    "negative": ([DIGITS, "--config.batch_size=-256"], "batch_size must be positive, not -256"),
    "zero": ([DIGITS, "--config.worker_batch_size=0"], "worker_batch_size must be positive"),
    "nan": ([DIGITS, "--config.total_epochs=nan"], "total_epochs must be finite"),
    "two lengths": ([DIGITS, "--config.total_steps=9"], "total_epochs.*total_steps.*same thing"),
    "no length": ([DIGITS, "--config.total_epochs=0"], "set total_epochs"),
    "long warmup": (
        [DIGITS, "--config.learning_rate.warmup_epochs=100"],
        "warmup of 561 updates is longer than the training of 505",
    ),
    "unknown network": ([DIGITS, "--config.model.name=resnet51"], "'resnet51'.*resnet50"),
    "unknown decay": ([DIGITS, "--config.learning_rate.decay=stairs"], "'stairs'.*cosine"),
    "unknown source": ([DIGITS, "--config.data.source=nowhere"], "'nowhere'.*digits"),
    "endless": ([DIGITS, "--config.total_epochs=1e12"], "updates is longer than 100,000,000"),
    "workdir not writable": ([DIGITS, "--workdir=/proc/lbsgd"], "/proc/lbsgd cannot be written"),
    "workdir is a file": ([DIGITS, "--workdir={tmp}/file"], "cannot be written"),
    "too many devices": ([DIGITS, "--config.devices=9"], "devices=9, but there is only 1"),
}


# One of each kind: of the keys' names, of their values together, of the workdir, of the machine.
SHORT_MISTAKES = ("unknown key",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x in SHORT_MISTAKES else pytest.mark.long) for x in MISTAKES],
)
def test_a_mistake_is_one_line_and_exit_code_2(name, tmp_path):
    args, says = MISTAKES[name]
    (tmp_path / "file").write_text("")
    done = lbsgd(*(arg.replace("{tmp}", str(tmp_path)) for arg in args))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("lbsgd: ")
    assert re.search(says, done.stderr), done.stderr


def test_explain_says_how_each_number_follows_and_trains_nothing(tmp_path):
    done = lbsgd(
        "--config=configs/imagenet_goyal.py",
        "--config.data.source=synthetic",
        "--config.accumulation_steps=8",
        "--explain",
        f"--workdir={tmp_path / 'x'}",
    )
    assert done.returncode == 0, done.stderr
    assert "25,557,032 parameters" in done.stdout
    assert (
        "learning rate: 3.2 = 0.1 x 8,192/256; gradual warmup 782 updates from 0.1" in done.stdout
    )
    assert "k=256 workers of n=32 = 1 device x 32 lanes x 8 accumulation steps" in done.stdout
    assert "14,075 updates = 90 epochs" in done.stdout
    said, table = done.stdout.split("\n\n")
    assert said.startswith("network: resnet50")
    assert table.startswith("+---")
    assert not (tmp_path / "x").exists()


@pytest.mark.long
def test_a_run_trains_without_tensorflow_and_torch(tmp_path):
    """In an interpreter that cannot import either."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def __init__(self, finder):\n"
        "        self.finder = finder\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tensorflow', 'torch', 'tensorboard', 'wandb'):\n"
        "            return None\n"
        "        return self.finder.find_spec(name, path, target)\n"
        "    def __getattr__(self, name):\n"
        "        return getattr(self.finder, name)\n"
        "sys.meta_path = [Without(finder) for finder in sys.meta_path]\n"
    )
    workdir = tmp_path / "run"
    keys = ("--config.total_steps=3", "--config.log.sinks=tensorboard,clu,wandb")
    done = lbsgd(*SMALL, *keys, f"--workdir={workdir}", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(list((workdir / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert "log.sinks='tensorboard'" not in done.stdout
    for name in ("clu", "wandb"):
        assert re.search(f"log.sinks='{name}' is off: .*'lbsgd.{name}.' turns it on", done.stdout)
    steps = [line["step"] for line in read_metrics(workdir / "metrics.jsonl")]
    assert steps == [1, 2, 3, 3]


@pytest.mark.long
def test_a_run_that_diverges_ends_with_one_line_and_exit_code_3(tmp_path):
    rate = "--config.learning_rate.reference_learning_rate=1e15"
    done = lbsgd(*SMALL, rate, "--config.total_steps=40", f"--workdir={tmp_path}")
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(r"lbsgd: diverged: the (loss|gradient) of update \d+ is not finite \(", line)
    assert line.endswith("; there is no checkpoint")


def test_sigterm_saves_and_the_workdir_alone_resumes(tmp_path):
    args = [*SMALL, "--config.total_steps=2000", f"--workdir={tmp_path}"]
    command = [sys.executable, "-m", "lbsgd.main", *args]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + HANG_SECONDS
    while len(read_metrics(metrics)) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 75
    assert "the same command resumes it" in out
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == read_metrics(metrics)[-1]["step"]
    resume = [sys.executable, "-m", "lbsgd.main", "train", f"--workdir={tmp_path}"]
    again = subprocess.Popen(
        resume, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in again.stdout:
        if f"resumes after update {saved}" in line:
            break
    else:
        pytest.fail(again.stderr.read())
    again.kill()
    again.communicate()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param("smoke", marks=pytest.mark.long),
        pytest.param("smoke,gamma=1,scaling=sqrt,warmup=constant", marks=pytest.mark.long),
        pytest.param("smoke,model=resnet101", marks=pytest.mark.long),
    ],
)
def test_imagenet_configs_run_three_updates(row, tmp_path):
    done = lbsgd(f"--config=configs/imagenet_goyal.py:{row}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "3 updates, 0.75 epochs" in done.stdout
