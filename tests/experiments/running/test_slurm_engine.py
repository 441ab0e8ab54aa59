"""Sweeps as job arrays: by submitit's own executor of this machine, and by a real SLURM."""

import json
import os
import re
import signal
import subprocess
import sys
import types

import pytest
from hanging import HANG_SECONDS
from slurm_cluster import slurm_here
from tiny_sweep import command, environment, left_by, run_sweep, start_sweep, write_sweep

from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.running import session, slurm
from lbsgd.experiments.sweep import read_sweep
from lbsgd.system import errors
from lbsgd.system.files import any_path

LOCAL = ["--engine=slurm", "--slurm.cluster=local"]


@pytest.mark.parametrize(
    ("code", "out", "err", "there"),
    [
        (0, "17_0\n17_2\n18_0\n", "", {"17_0", "18_0"}),
        (0, "", "", set()),
        (1, "", "slurm_load_jobs error: Invalid job id specified\n", set()),
        (1, "", "slurm_load_jobs error: Unable to contact slurm controller\n", None),
    ],
)
def test_tasks_in_the_queue_are_those_that_squeue_names(
    tmp_path, monkeypatch, code, out, err, there
):
    fake = tmp_path / "squeue"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "assert sys.argv[-1] == '--jobs=17,18', sys.argv\n"
        f"sys.stdout.write({out!r}); sys.stderr.write({err!r}); sys.exit({code})\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.in_queue({"17_0", "17_1", "18_0"}) == there


def test_where_there_is_no_slurm_nothing_is_known_of_its_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.in_queue({"17_0"}) is None


def test_tasks_are_not_submitted_again_before_slurm_has_answered(tmp_path, monkeypatch):
    """It is asked three times: no answer, one that names a task, and one that names none."""
    asked = tmp_path / "asked"
    fake = tmp_path / "squeue"
    fake.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        f"asked = pathlib.Path({str(asked)!r})\n"
        "asked.write_text((asked.read_text() if asked.exists() else '') + '.')\n"
        "times = len(asked.read_text())\n"
        "print({1: '', 2: '17_0', 3: ''}[times])\n"
        "sys.exit(times == 1)\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.0)
    (tmp_path / "submitted.json").write_text('["17_0"]')
    executor, display = types.SimpleNamespace(cluster="slurm"), types.SimpleNamespace(line=print)
    slurm._Arrays(executor, None, None, display, tmp_path, 0)._await_before()
    assert asked.read_text() == "..."


class Executor:
    """Stands in for submitit's: a task is over as soon as it is asked for.

    Attributes:
      arrays: what was submitted: of each the jobs of its tasks, by name.
    """

    cluster = "slurm"

    def __init__(self, act):
        self.arrays, self._act = [], act

    def map_array(self, function, chunks):
        self.arrays.append([[str(job) for job in chunk] for chunk in chunks])
        return [self._handle(i, chunk) for i, chunk in enumerate(chunks)]

    def _handle(self, index, chunk):
        def done():
            for run in (run for job in chunk for run in job.runs):
                self._act(run)
            return True

        paths = types.SimpleNamespace(stderr=f"{index}.err")
        return types.SimpleNamespace(job_id=f"17_{index}", paths=paths, done=done)


def ends(run, result):
    any_path(run.workdir).mkdir(parents=True, exist_ok=True)
    (any_path(run.workdir) / "result.json").write_text(json.dumps(result))


def diverges(run):
    ends(run, {"complete": False, "diverged": "the loss is not finite"})


def completes(run):
    metrics = {"val_error": {"final": 2.5, "unit": "%", "rises": False, "words": "error"}}
    ends(run, {"complete": True, "headline": "val_error", "final": 2.5, "metrics": metrics})


@pytest.fixture
def submit(tmp_path, monkeypatch, capsys):
    """Runs a sweep of one row on the stand-in; the exit code, what it says, and its arrays."""

    def submit(act, seeds, tasks=0):
        executor = Executor(act)
        monkeypatch.setattr(slurm, "_executor", lambda parameters, folder: executor)
        sweep = read_sweep(write_sweep(tmp_path / "tiny.py", {"x": {}}, settings=f"seeds={seeds}"))
        engine = slurm.slurm_engine({}, tasks)
        code = session.run_sweep(sweep, SweepFolder(tmp_path / "runs"), sweep.rows, engine, 1)
        return code, capsys.readouterr().out, executor.arrays

    return submit


@pytest.mark.parametrize(
    ("seeds", "tasks", "sizes"),
    [(5, 0, [1] * 5), (5, 2, [3, 2]), (5, 4, [2, 2, 1]), (3, 8, [1] * 3)],
)
def test_jobs_are_shared_out_among_so_many_tasks_at_most(submit, seeds, tasks, sizes):
    code, _, (array,) = submit(diverges, seeds, tasks)
    assert code == errors.EXIT_DONE
    assert [len(chunk) for chunk in array] == sizes
    assert [job for chunk in array for job in chunk] == [f"x seed {i}" for i in range(seeds)]


def test_what_tasks_leave_is_submitted_again_as_long_as_it_gets_any_further(submit):
    """Seed 1 saves a checkpoint in its first two tasks, and then comes to nothing."""
    tasks = []

    def act(run):
        if run.what != "seed 1":
            diverges(run)
            return
        tasks.append(run.what)
        assert len(tasks) < 9, "it is submitted for ever"
        if len(tasks) <= 2:
            path = any_path(run.workdir) / "checkpoints" / str(len(tasks))
            path.mkdir(parents=True)

    code, said, arrays = submit(act, 3)
    assert code == errors.EXIT_FAILED
    assert arrays == [[["x seed 0"], ["x seed 1"], ["x seed 2"]], *[[["x seed 1"]]] * 3]
    assert "x seed 1: failed: its task ended 3 times" in said


def test_runs_that_tasks_of_before_have_ended_are_reported(submit, tmp_path, monkeypatch):
    """The process that submitted them was killed; the next one waits, and finds them complete."""
    logs = tmp_path / "runs" / "logs" / "slurm"
    logs.mkdir(parents=True)
    (logs / "submitted.json").write_text('["16_0", "16_1"]')

    def in_queue(ids):
        assert ids == {"16_0", "16_1"}
        for seed in range(2):
            workdir = str(tmp_path / "runs" / "x" / f"seed_{seed}")
            completes(types.SimpleNamespace(workdir=workdir))
        return set()

    monkeypatch.setattr(slurm, "in_queue", in_queue)
    code, said, arrays = submit(completes, 3)
    assert (code, arrays) == (errors.EXIT_DONE, [[["x seed 2"]]])
    ended = re.findall(r"x seed (\d): validation error 2.50% \((\d) of 3 runs done\)", said)
    assert ended == [("0", "1"), ("1", "2"), ("2", "3")]
    assert (tmp_path / "runs" / "results.json").exists()


@pytest.mark.long
def test_a_sweep_as_an_array_is_the_sweep(tmp_path):
    file = write_sweep(tmp_path / "tiny.py", updates=6)
    here, array = tmp_path / "here", tmp_path / "array"
    assert run_sweep(file, f"--workdir={here}")[0] == errors.EXIT_DONE
    code, out = run_sweep(file, f"--workdir={array}", *LOCAL, "--parallel=2")
    assert code == errors.EXIT_DONE, out
    assert "submitted 2 tasks as job" in out
    assert len(re.findall(r"validation error [\d.]+% \(\d of 4 runs done\)", out)) == 4
    assert left_by(array) == left_by(here)
    code, out = run_sweep(file, f"--workdir={array}", *LOCAL, "--parallel=2")
    assert (code, "submitted" in out) == (errors.EXIT_DONE, False)


@pytest.mark.long
def test_runs_that_fail_in_a_task_are_rows_with_their_reason(tmp_path, monkeypatch):
    """One by an error, one by the end of its process, which is tried three times."""
    (tmp_path / "deadly.py").write_text("import os\ndef loss(logits, labels):\n    os.abort()\n")
    monkeypatch.chdir(tmp_path)
    none = {"data.source": "folder", "data.dir": str(tmp_path / "none")}
    rows = {"deadly": {"task.loss": "deadly:loss"}, "no data": none, "good": {}}
    file, folder = write_sweep(tmp_path / "tiny.py", rows), tmp_path / "runs"
    code, out = run_sweep(file, f"--workdir={folder}", "--seeds=1", *LOCAL)
    assert code == errors.EXIT_FAILED, out
    assert "deadly seed 0: failed: its task ended 3 times; see " in out
    assert re.search(r"no data seed 0: failed: .*none", out)
    assert "good seed 0: validation error" in out
    assert re.findall(r"submitted (\d) task", out) == ["3", "1", "1"]


@pytest.mark.long
def test_tasks_that_are_cancelled_save(tmp_path):
    file, folder = write_sweep(tmp_path / "tiny.py", updates=80), tmp_path / "runs"
    words = [file, f"--workdir={folder}", "--seeds=1", "--only", "rate=0.1", *LOCAL]
    runner = start_sweep(*words)
    metrics = folder / "rate=0.1" / "seed_0" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert runner.poll() is None
    runner.send_signal(signal.SIGTERM)
    out, _ = runner.communicate(timeout=HANG_SECONDS)
    assert runner.returncode == errors.EXIT_PREEMPTED, out
    code, out = run_sweep(*words)
    assert code == errors.EXIT_DONE, out
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 81))


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slurm.partitoin=x"], "'partitoin'"),
        (["--slurm.timeout_min=long"], "timeout_min"),
    ],
)
def test_parameters_that_submitit_does_not_know_are_told(tmp_path, words, said):
    file = write_sweep(tmp_path / "tiny.py")
    code, out = run_sweep(file, f"--workdir={tmp_path}/runs", *LOCAL, *words)
    assert code == errors.EXIT_USER
    assert re.fullmatch(rf"lbsgd: --engine slurm: .*{said}.*\n", out)
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm_here(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.mark.long
def test_a_sweep_runs_as_an_array_of_a_real_slurm(cluster, tmp_path):
    """Two tasks at a time; the process that waits is killed, and the next one waits for them."""
    file = write_sweep(tmp_path / "tiny.py", updates=12)
    here, array = tmp_path / "here", tmp_path / "array"
    assert run_sweep(file, f"--workdir={here}")[0] == errors.EXIT_DONE
    env = {**environment(), **{k: cluster.env[k] for k in ("PATH", "SLURM_CONF")}}
    words = command(file, f"--workdir={array}", "--engine=slurm", "--slurm.cpus_per_task=1")
    runner = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)
    for line in runner.stdout:
        if line.startswith("submitted 4 tasks"):
            break
    runner.kill()
    runner.communicate()
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == errors.EXIT_DONE, done.stdout + done.stderr + cluster.logs()
    assert "waits for tasks that were submitted before: " in done.stdout
    assert "submitted" not in done.stdout.partition("before: ")[2]
    assert left_by(array) == left_by(here)
    assert (array / "results.json").exists()
    assert os.listdir(array / "logs") == ["slurm"]
