"""tpu_pod.sh with a gcloud whose workers are folders."""

import os
import subprocess
import time

import pytest
from cluster_fakes import ARGUMENTS, LAUNCH, ROOT, executable, words

from lbsgd.system import errors

GCLOUD = """#!/bin/bash
printf '%s\\0' "$@" >>{folder}/gcloud
printf '\\n\\0' >>{folder}/gcloud
case "$1 $2 $3 $4" in
    "compute tpus tpu-vm ssh")
        for word in "$@"; do
            case $word in
                --worker=all) workers="0 1" ;;
                --worker=*) workers=${{word#--worker=}} ;;
                --command=*) command=${{word#--command=}} ;;
            esac
        done
        code=0
        for worker in $workers; do
            (cd {folder}/worker-$worker && HOME=$PWD exec bash -c "$command") || code=1
        done
        exit $code
        ;;
    "compute tpus tpu-vm scp")
        cp "$5" {folder}/worker-0/ && cp "$5" {folder}/worker-1/
        ;;
    "compute tpus queued-resources describe")
        [ -f {folder}/queued ] && cat {folder}/queued
        ;;
esac
"""

TRAINING = """#!/bin/bash
printf '%s\\0' "$@" >given
trap 'exit 75' TERM
while :; do sleep 0.05; done
"""


@pytest.fixture
def tpu(tmp_path):
    """Runs tpu_pod.sh with a gcloud whose two workers are folders."""
    executable(tmp_path / "bin" / "gcloud", GCLOUD.format(folder=tmp_path))
    for worker in (0, 1):
        executable(tmp_path / f"worker-{worker}" / "lbsgd/.venv/bin/python", TRAINING)

    def call(*args, **variables):
        env = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "NAME": "pod",
            "ZONE": "here-1a",
            "PROJECT": "my project",
            **variables,
        }
        return subprocess.run(
            [LAUNCH / "tpu_pod.sh", *args], env=env, cwd=tmp_path, capture_output=True, text=True
        )

    call.folder = tmp_path
    yield call
    call("stop")


def gcloud_calls(tpu) -> list[list[str]]:
    calls, call = [], []
    for word in words(tpu.folder / "gcloud"):
        if word == "\n":
            calls.append(call)
            call = []
        else:
            call.append(word)
    return calls


def test_tpu_quoting_survives_the_workers_shell(tpu):
    done = tpu("start", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    for worker in (0, 1):
        given = tpu.folder / f"worker-{worker}" / "lbsgd" / "given"
        wait_for(given.exists)
        assert words(given) == ["-m", "lbsgd.main", "train", *ARGUMENTS]
    assert not list(tpu.folder.rglob("wrong"))


def test_tpu_start_stop_and_go_on(tpu):
    assert "not started" in tpu("status").stdout
    assert tpu("start", "--config=x").returncode == 0
    assert tpu("status").stdout.count("runs") == 2
    again = tpu("start", "--config=x")
    assert again.returncode != 0
    assert "runs already" in again.stderr
    for worker in (0, 1):
        wait_for((tpu.folder / f"worker-{worker}" / "lbsgd" / "given").exists)
    stopped = tpu("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.count(f"exit code {errors.EXIT_PREEMPTED}") == 2
    assert tpu("start", "--config=x").returncode == 0
    assert tpu("status").stdout.count("runs") == 2


def test_tpu_number_of_another_process_is_not_believed(tpu):
    """Of one that got it after a reboot, which left the file."""
    other = subprocess.Popen(["sleep", "1000"])
    for worker in (0, 1):
        (tpu.folder / f"worker-{worker}" / "lbsgd" / "pid").write_text(f"{other.pid}\n")
    try:
        assert tpu("status").stdout.count("not started, or ended") == 2
        assert tpu("stop").returncode == 0
        assert tpu("start", "--config=x").returncode == 0
        assert tpu("status").stdout.count("runs") == 2
        assert tpu("stop").stdout.count(f"exit code {errors.EXIT_PREEMPTED}") == 2
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_tpu_mounts_first(tpu):
    assert tpu("start", "--config=x", MOUNT="touch mounted").returncode == 0
    assert (tpu.folder / "worker-1/lbsgd/mounted").exists()
    tpu("stop")
    failed = tpu("start", "--config=x", MOUNT="false")
    assert failed.returncode != 0
    assert tpu("status").stdout.count("runs") == 0


@pytest.mark.parametrize(
    ("command", "spot", "expected"),
    [
        (
            "create",
            "no",
            "compute tpus tpu-vm create pod --accelerator-type=v5litepod-16 "
            "--version=v2-alpha-tpuv5-lite",
        ),
        (
            "queue",
            "yes",
            "compute tpus queued-resources create pod --node-id=pod "
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot",
        ),
    ],
)
def test_tpu_asks_for_a_slice(tpu, command, spot, expected):
    assert tpu(command, SPOT=spot).returncode == 0
    where = ["--zone=here-1a", "--project=my project"]
    [call] = gcloud_calls(tpu)
    assert set(call) == {*expected.split(), *where}
    assert call[:5] == expected.split()[:5]


@pytest.mark.parametrize("queued", [True, False])
def test_tpu_delete_takes_the_slice(tpu, queued):
    if queued:
        (tpu.folder / "queued").write_text("SUSPENDED\n")
    assert tpu("delete").returncode == 0
    last = gcloud_calls(tpu)[-1]
    kind = "queued-resources" if queued else "tpu-vm"
    assert last[:5] == ["compute", "tpus", kind, "delete", "pod"]
    assert ("--force" in last) == queued


def test_tpu_install_brings_this_commit(tpu):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so there is no commit to bring")
    executable(
        tpu.folder / "bin" / "python3.11",
        "#!/bin/bash\nmkdir -p .venv/bin\n"
        'printf \'#!/bin/bash\\nprintf "%%s\\\\0" "$@" >pip-given\\n\' >.venv/bin/pip\n'
        "chmod +x .venv/bin/pip\n",
    )
    done = tpu("install")
    assert done.returncode == 0, done.stderr
    for worker in (0, 1):
        home = tpu.folder / f"worker-{worker}" / "lbsgd"
        assert (home / "lbsgd" / "main.py").exists()
        assert words(home / "pip-given") == ["install", "--quiet", "-e", ".[tpu,gs]"]


RECORDING = """#!/bin/bash
printf '%s\\0' "$@" >>{folder}/gcloud
printf '\\n\\0' >>{folder}/gcloud
[[ $4 != describe ]]
"""


@pytest.mark.parametrize(
    "args",
    [["create"], ["queue"], ["start", *ARGUMENTS], ["watch"], ["status"], ["stop"], ["delete"]],
    ids=lambda args: args[0],
)
def test_tpu_dry_run_prints_what_it_would_run(tpu, args):
    """A shell that reads what was printed calls gcloud as the script itself does."""
    executable(tpu.folder / "bin" / "gcloud", RECORDING.format(folder=tpu.folder))
    dry = tpu(*args, DRY_RUN="yes")
    assert dry.returncode == 0, dry.stderr
    assert not (tpu.folder / "gcloud").exists()
    path = f"{tpu.folder / 'bin'}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", dry.stdout], env={**os.environ, "PATH": path}, check=True)
    printed = gcloud_calls(tpu)
    (tpu.folder / "gcloud").unlink()
    assert tpu(*args).returncode == 0
    # Which asks whether something is queued, too.
    assert printed == [call for call in gcloud_calls(tpu) if "describe" not in call]


@pytest.mark.parametrize("args", [[], ["begin"], ["start"], ["stop", "now"]])
def test_tpu_says_how_it_is_used(tpu, args):
    done = tpu(*args)
    assert done.returncode == errors.EXIT_USER
    assert "tpu_pod.sh create" in done.stderr


def wait_for(condition) -> None:
    """Until it holds; what never does ends in pytest's or the caller's patience."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
