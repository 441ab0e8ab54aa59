"""Real trainings under Open MPI and under SLURM, on this machine alone."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from hanging import HANG_SECONDS

from lbsgd.run.record.metrics import read_metrics
from lbsgd.system import errors

ROOT = pathlib.Path(__file__).parent.parent.parent
ARGS = [
    "--config=configs/digits.py",
    "--config.model.width=0.25",
    "--config.total_epochs=0",
    "--config.learning_rate.warmup_epochs=0.5",
]


def environment(**more: str) -> dict[str, str]:
    """Of a job: the python of the tests, and of this machine one device a process."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "PYTEST"))}
    flags = "--xla_force_host_platform_device_count=1"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, **more}


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not found:
        pytest.skip(f"no {name}: apt-get install {package}")
    return found


def updates(workdir: pathlib.Path) -> list[int]:
    """The updates in the metrics, in their order."""
    path = workdir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return [line["step"] for line in lines if "train_loss" in line]


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.1)


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

SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=localhost NodeHostname={host} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES PriorityTier=1 State=UP
PartitionName=urgent Nodes=localhost PriorityTier=9 State=UP
"""


class Cluster:
    """A SLURM of one node with two CPUs, on the loopback interface.

    A requeued job waits as long as a credential lives (`cred_expire`): here 5 s, else two minutes.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        controller, node = free_ports(2)
        self.conf = folder / "slurm.conf"
        host = socket.gethostname().split(".")[0]
        self.conf.write_text(
            SLURM_CONF.format(folder=folder, controller=controller, node=node, host=host)
        )
        self.env = environment(SLURM_CONF=str(self.conf))

    def __enter__(self) -> "Cluster":
        names = ("key", "socket", "log", "pid", "seed")
        munge = [f"--{x}{'' if x == 'socket' else '-file'}={self.folder}/munge.{x}" for x in names]
        self._start("munged", "munge", "--foreground", "--force", *munge)
        wait_for((self.folder / "munge.socket").exists, "munged does not come up")
        self._start("slurmctld", "slurm-wlm", "-D", "-f", str(self.conf))
        self._start("slurmd", "slurm-wlm", "-D", "-f", str(self.conf))
        wait_for(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%t"), self.logs)
        return self

    def __exit__(self, *_: object) -> None:
        self.call("scancel", "--signal=KILL", "--full", "--user=root")
        self.call("scancel", "--user=root")
        wait_for(lambda: not self.call("squeue", "--noheader"), self.logs)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(HANG_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, name: str, package: str, *args: str) -> None:
        with (self.folder / f"{name}.out").open("w") as out:
            command = [program(name, package), *args]
            self._daemons.append(
                subprocess.Popen(command, env=self.env, stdout=out, stderr=subprocess.STDOUT)
            )

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def submit(self, *args: str) -> str:
        """The number of a job of launch/slurm.sh, two tasks on the one node."""
        size = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gres=none"]
        output = f"--output={self.folder}/job-%j.log"
        number = self.call("sbatch", "--parsable", *size, output, "launch/slurm.sh", *ARGS, *args)
        assert number.isdigit(), self.logs()
        return number

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job, by SLURM's names."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, state: str) -> None:
        wait_for(lambda: self.job(number).get("JobState") == state, self.logs)

    def logs(self) -> str:
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"{path}:\n{path.read_text()[-6000:]}" for path in files)


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    for name, package in (("munged", "munge"), ("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm")):
        program(name, package)
    if os.geteuid():
        pytest.skip("slurmd starts tasks as other users, so it needs root")
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


STOPS = {
    "scancel --signal": ["scancel", "--signal=TERM"],
    "scontrol requeue": ["scontrol", "requeue"],
    "preemption": ["sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=true"],
}


@pytest.mark.long
@pytest.mark.parametrize("stop", STOPS)
def test_slurm_job_saves_is_requeued_and_goes_on(slurm, tmp_path, stop):
    steps = ["--config.total_steps=150", "--config.checkpoint.every_minutes=0"]
    number = slurm.submit(*steps, f"--workdir={tmp_path}")
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
    number = slurm.submit("--config.batch_size=-1", f"--workdir={tmp_path}")
    slurm.wait(number, "FAILED")
    told = slurm.job(number)
    assert (told["Restarts"], told["ExitCode"]) == ("0", f"{errors.EXIT_USER}:0"), slurm.logs()


@pytest.mark.long
def test_slurm_cancelled_job_saves_and_stays_away(slurm, tmp_path):
    number = slurm.submit("--config.total_steps=4000", f"--workdir={tmp_path}")
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
