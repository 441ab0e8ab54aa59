"""Real trainings under Open MPI and under SLURM, on this machine alone."""

import pathlib
import re
import signal
import subprocess
import sys

import psutil
import pytest
from hanging import HANG_SECONDS
from slurm_cluster import Cluster, environment, program, slurm_here, wait_for

from lbsgd.run.record.metrics import read_metrics
from lbsgd.system import errors

ROOT = pathlib.Path(__file__).parent.parent.parent
ARGS = [
    "--config=configs/digits.py",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.learning_rate.warmup_epochs=0.5",
]


def updates(workdir: pathlib.Path) -> list[int]:
    """The updates in the metrics, in their order."""
    path = workdir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return [line["step"] for line in lines if "train_loss" in line]


def saved(workdir: pathlib.Path) -> int:
    return max(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    )


# Open MPI


def mpirun(workdir: pathlib.Path, total_steps: int) -> subprocess.Popen:
    command = [program("mpirun", "openmpi-bin"), "-n", "2", "--oversubscribe"]
    run = [sys.executable, "-m", "lbsgd.main", *ARGS, f"--config.total_steps={total_steps}"]
    env = environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return subprocess.Popen(
        [*command, *run, f"--workdir={workdir}"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.long
def test_mpirun_trains_in_two_processes(tmp_path):
    out, _ = (job := mpirun(tmp_path, 8)).communicate(timeout=HANG_SECONDS)
    assert job.returncode == errors.EXIT_DONE, out
    assert updates(tmp_path) == list(range(1, 9))
    assert '"processes": 2' in (tmp_path / "machine.json").read_text()


@pytest.mark.long
def test_mpirun_processes_stop_together_and_go_on(tmp_path):
    job = mpirun(tmp_path, 4000)
    ranks = [p for p in await_children(job.pid) if "lbsgd.main" in p.cmdline()]
    wait_for(lambda: len(updates(tmp_path)) > 4, "no updates")
    ranks[1].send_signal(signal.SIGTERM)  # not mpirun, which would kill them a second later
    out, _ = job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == errors.EXIT_PREEMPTED, out
    assert updates(tmp_path)[-1] == saved(tmp_path)


def await_children(pid: int) -> list[psutil.Process]:
    wait_for(lambda: len(psutil.Process(pid).children()) == 2, "no processes of mpirun")
    return psutil.Process(pid).children()


# SLURM


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_here(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(cluster: Cluster, *args: str) -> str:
    """The number of a job of launch/slurm.sh, two tasks on the one node."""
    size = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gres=none"]
    output = f"--output={cluster.folder}/job-%j.log"
    number = cluster.call("sbatch", "--parsable", *size, output, "launch/slurm.sh", *ARGS, *args)
    assert number.isdigit(), cluster.logs()
    return number


STOPS = {
    "scancel --signal": ["scancel", "--signal=TERM"],
    "scontrol requeue": ["scontrol", "requeue"],
    "preemption": ["sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=true"],
}


@pytest.mark.long
@pytest.mark.parametrize("stop", STOPS)
def test_slurm_job_saves_is_requeued_and_goes_on(slurm, tmp_path, stop):
    steps = ["--config.total_steps=150", "--config.checkpoint.every_minutes=0"]
    number = submit(slurm, *steps, f"--workdir={tmp_path}")
    wait_for(lambda: len(updates(tmp_path)) > 4, slurm.logs)
    slurm.call(*STOPS[stop], *([] if stop == "preemption" else [number]))
    slurm.wait(number, "COMPLETED")
    assert slurm.job(number)["Restarts"] == "1"
    assert updates(tmp_path) == list(range(1, 151)), slurm.logs()
    log = (slurm.folder / f"job-{number}.log").read_text()
    assert re.findall(r"start (\d)", log) == ["1", "2"]  # the second start appends
    # No checkpoint is due before the end, so the only one is of the signal.
    [done] = re.findall(r"resumes after update (\d+)", log)
    assert 4 < int(done) < 150


@pytest.mark.long
def test_slurm_job_with_a_mistake_is_not_requeued(slurm, tmp_path):
    number = submit(slurm, "--config.batch_size=-1", f"--workdir={tmp_path}")
    slurm.wait(number, "FAILED")
    told = slurm.job(number)
    assert (told["Restarts"], told["ExitCode"]) == ("0", f"{errors.EXIT_USER}:0"), slurm.logs()


@pytest.mark.long
def test_slurm_cancelled_job_saves_and_stays_away(slurm, tmp_path):
    number = submit(slurm, "--config.total_steps=4000", f"--workdir={tmp_path}")
    wait_for(lambda: len(updates(tmp_path)) > 4, slurm.logs)
    slurm.call("scancel", number)
    slurm.wait(number, "CANCELLED")
    assert saved(tmp_path) == updates(tmp_path)[-1], slurm.logs()
    assert slurm.job(number)["Restarts"] == "0"


@pytest.mark.long
def test_slurm_accepts_the_script_as_it_is(slurm):
    """All but its size, which this node does not have."""
    size = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--gres=none"]
    command = ["sbatch", "--test-only", *size, "launch/slurm.sh"]
    done = subprocess.run(command, env=slurm.env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
