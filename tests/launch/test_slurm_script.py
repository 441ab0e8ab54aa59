"""slurm.sh among fakes: every exit code, its arguments, signals and options."""

import os
import re
import signal
import subprocess

import pytest
from cluster_fakes import ARGUMENTS, LAUNCH, executable, words

from lbsgd import errors


@pytest.fixture
def slurm(tmp_path):
    """Starts slurm.sh among fakes: srun ends with a given code, squeue tells a given state."""
    fakes = tmp_path / "bin"
    executable(
        fakes / "srun", f"#!/bin/bash\nprintf '%s\\0' \"$@\" >{tmp_path}/srun\n. {tmp_path}/task\n"
    )
    executable(fakes / "squeue", '#!/bin/bash\necho "$STATE"\n')
    executable(fakes / "scontrol", f"#!/bin/bash\nprintf '%s\\0' \"$@\" >>{tmp_path}/scontrol\n")

    def start(task, *args, state="RUNNING", restarts=0):
        (tmp_path / "task").write_text(task)
        env = {
            "PATH": f"{fakes}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "STATE": state,
        }
        if restarts:
            env["SLURM_RESTART_COUNT"] = str(restarts)
        return subprocess.Popen(["bash", LAUNCH / "slurm.sh", *args], cwd=tmp_path, env=env)

    start.folder = tmp_path
    return start


@pytest.mark.parametrize(
    ("code", "restarts", "state", "again"),
    [
        (errors.EXIT_DONE, 0, "RUNNING", False),
        (errors.EXIT_USER, 0, "RUNNING", False),
        (errors.EXIT_DIVERGED, 0, "RUNNING", False),
        (errors.EXIT_PREEMPTED, 0, "RUNNING", True),
        (errors.EXIT_PREEMPTED, 1000, "RUNNING", True),
        (errors.EXIT_PREEMPTED, 0, "COMPLETING", False),  # scancel, scontrol requeue, preemption
        (errors.EXIT_FAILED, 0, "RUNNING", True),
        (errors.EXIT_FAILED, 9, "RUNNING", True),
        (errors.EXIT_FAILED, 10, "RUNNING", False),
        (errors.EXIT_FAILED, 0, "COMPLETING", False),
        (134, 0, "RUNNING", True),
    ],
)
def test_slurm_requeues_what_another_start_can_mend(slurm, code, restarts, state, again):
    job = slurm(f"exit {code}", state=state, restarts=restarts)
    assert job.wait() == (0 if again else code)
    assert (slurm.folder / "scontrol").exists() == again
    if again:
        assert words(slurm.folder / "scontrol") == ["requeue", "17"]


def test_slurm_passes_arguments_on(slurm):
    assert slurm("exit 0", *ARGUMENTS).wait() == 0
    given = words(slurm.folder / "srun")
    start = given.index("python")
    assert given[start:] == ["python", "-m", "lbsgd.main", *ARGUMENTS]
    assert not (slurm.folder / "wrong").exists()


def test_slurm_shell_outlives_the_signal_that_also_the_tasks_get(slurm):
    os.mkfifo(slurm.folder / "started")
    os.mkfifo(slurm.folder / "saved")
    job = slurm(f"echo >started; read -r <saved; exit {errors.EXIT_PREEMPTED}")
    (slurm.folder / "started").read_text()
    job.send_signal(signal.SIGTERM)
    (slurm.folder / "saved").write_text("\n")
    assert job.wait() == 0
    assert words(slurm.folder / "scontrol") == ["requeue", "17"]


def test_slurm_options():
    lines = re.findall(r"^#SBATCH --(\S+)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    options = dict(line.split("=", 1) if "=" in line else (line, "") for line in lines)
    assert {"requeue", "open-mode"} <= options.keys()
    assert options["open-mode"] == "append"
    assert options["gres"] == f"gpu:{options['ntasks-per-node']}"  # JAX: one GPU a task
    name, seconds = options["signal"].split("@")
    assert name == "TERM"  # with "B:" the tasks would not get it
    assert int(seconds) >= 120  # SLURM may be a minute early or late
