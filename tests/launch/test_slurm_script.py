"""slurm.sh among fakes: every exit code, its arguments, signals and options."""

import os
import re
import signal
import subprocess

import pytest
from cluster_fakes import ARGUMENTS, LAUNCH, executable, words

from lbsgd.system import errors


@pytest.fixture
def slurm(tmp_path):
    """Starts slurm.sh among fakes: srun ends with a given code, squeue tells a given state."""
    fakes = tmp_path / "bin"
    executable(
        fakes / "srun", f"#!/bin/bash\nprintf '%s\\0' \"$@\" >{tmp_path}/srun\n. {tmp_path}/task\n"
    )
    executable(fakes / "squeue", '#!/bin/bash\necho "$STATE"\n')
    executable(fakes / "scontrol", f"#!/bin/bash\nprintf '%s\\0' \"$@\" >>{tmp_path}/scontrol\n")

    def start(task, *args, state="RUNNING", most=10):
        (tmp_path / "task").write_text(task)
        env = {
            "PATH": f"{fakes}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "STATE": state,
            "SLURM_RESTART_COUNT": "1000",  # by preemptions
            "LBSGD_MAX_RESTARTS": str(most),
        }
        return subprocess.Popen(["bash", LAUNCH / "slurm.sh", *args], cwd=tmp_path, env=env)

    start.folder = tmp_path
    return start


@pytest.mark.parametrize(
    ("code", "state", "again"),
    [
        (errors.EXIT_DONE, "RUNNING", False),
        (errors.EXIT_USER, "RUNNING", False),
        (errors.EXIT_DIVERGED, "RUNNING", False),
        (126, "RUNNING", False),  # python cannot be started
        (127, "RUNNING", False),  # there is none
        (errors.EXIT_PREEMPTED, "RUNNING", True),
        (errors.EXIT_PREEMPTED, "COMPLETING", False),  # scancel, scontrol requeue, preemption
        (errors.EXIT_FAILED, "RUNNING", True),
        (errors.EXIT_FAILED, "COMPLETING", False),
        (134, "RUNNING", True),
    ],
)
def test_slurm_requeues_what_another_start_can_mend(slurm, code, state, again):
    job = slurm(f"exit {code}", state=state)
    assert job.wait() == (0 if again else code)
    assert (slurm.folder / "scontrol").exists() == again
    assert len(list(slurm.folder.glob("*.failures"))) == again
    if again:
        assert words(slurm.folder / "scontrol") == ["requeue", "17"]


@pytest.mark.parametrize("most", [0, 2])
def test_slurm_gives_up_after_failures_in_a_row(slurm, most):
    """Those that a checkpoint came between are not in a row."""
    for _ in range(2):
        for _ in range(most):
            assert slurm(f"exit {errors.EXIT_FAILED}", most=most).wait() == 0
        assert slurm(f"exit {errors.EXIT_PREEMPTED}", most=most).wait() == 0
    for _ in range(most):
        assert slurm("exit 134", most=most).wait() == 0
    assert slurm("exit 134", most=most).wait() == 134
    assert not list(slurm.folder.glob("*.failures"))


def test_slurm_requeues_nothing_without_count(slurm):
    (slurm.folder / "slurm-17.failures").mkdir()
    assert slurm(f"exit {errors.EXIT_FAILED}").wait() != 0
    assert not (slurm.folder / "scontrol").exists()


def test_slurm_passes_arguments_on(slurm):
    assert slurm("exit 0", *ARGUMENTS).wait() == 0
    given = words(slurm.folder / "srun")
    start = given.index("python")
    assert given[start:] == ["python", "-m", "lbsgd.main", "train", *ARGUMENTS]
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
    assert options["mem"] == "0"  # with all GPUs of a node all of its memory
    name, seconds = options["signal"].split("@")
    assert name == "TERM"  # with "B:" the tasks would not get it
    assert int(seconds) >= 120  # SLURM may be a minute early or late
