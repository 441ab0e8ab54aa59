"""A SLURM of one node, started for tests where its programs are there."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hanging import HANG_SECONDS

ROOT = pathlib.Path(__file__).parent.parent


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


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.1)


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


@contextlib.contextmanager
def slurm_here(folder: pathlib.Path) -> Iterator[Cluster]:
    """Starts a SLURM; skips the test where that cannot be."""
    for name, package in (("munged", "munge"), ("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm")):
        program(name, package)
    if os.geteuid():
        pytest.skip("slurmd starts tasks as other users, so it needs root")
    with Cluster(folder) as cluster:
        yield cluster
