"""Sweeps that really run: their lines, what they leave, and after which ends they go on."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from hanging import HANG_SECONDS
from tiny_sweep import ROWS, environment, left_by, run_sweep, start_sweep, write_sweep

from lbsgd.experiments import run_command
from lbsgd.experiments.folder import SweepFolder
from lbsgd.experiments.sweep import read_sweep
from lbsgd.system import errors


def wait_for(condition, what: str):
    end = time.monotonic() + HANG_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return found


def workers(runner: int) -> list[psutil.Process]:
    """The worker processes of a runner that have become Python of lbsgd."""
    try:
        children = psutil.Process(runner).children()
        return [p for p in children if "lbsgd.experiments.running.worker" in p.cmdline()]
    except psutil.NoSuchProcess:
        return []


def files(folder: pathlib.Path) -> dict[pathlib.Path, tuple[bytes, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_a_sweep_runs_all_rows_and_seeds_in_one_process(tmp_path, monkeypatch, capfd):
    """Rows of one compiled step; the second start finds nothing to do."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    file, folder = write_sweep(tmp_path / "tiny.py"), tmp_path / "runs"
    assert run_command.main([file, f"--workdir={folder}"]) == errors.EXIT_DONE
    out = capfd.readouterr().out
    assert "4 runs of 2 rows: 4 to do" in out
    ended = re.findall(r"(.*): validation error [\d.]+% \((\d) of 4 runs done\)", out)
    names = [f"{name} seed {seed}" for name in ROWS for seed in range(2)]
    assert ended == [(name, str(i)) for i, name in enumerate(names, 1)]
    left = left_by(folder)
    assert len(left) == 8
    for path, found in left.items():
        if path.endswith("result.json"):
            assert found["complete"]
            assert found["updates"] == 2
    assert len(list((folder / "logs").iterdir())) == 1
    assert SweepFolder(folder).read().rows == read_sweep(file).rows
    before = files(folder / "rate=0.1")
    assert run_command.main([file, f"--workdir={folder}"]) == errors.EXIT_DONE
    assert files(folder / "rate=0.1") == before
    assert "4 runs of 2 rows: 4 complete, 0 to do" in capfd.readouterr().out


@pytest.mark.long
def test_a_sweep_that_was_killed_twice_is_one_that_was_not(tmp_path):
    """First a worker is killed, then the runner, in the middle of runs."""
    file = write_sweep(tmp_path / "tiny.py", updates=40)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_sweep(file, f"--workdir={whole}")[0] == errors.EXIT_DONE
    first, second = (killed / SweepFolder(killed).seed(row, 0) for row in read_sweep(file).rows)

    def under_way(workdir):
        metrics = workdir / "metrics.jsonl"
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        return lines > 5 and not (workdir / "result.json").exists()

    runner = start_sweep(file, f"--workdir={killed}")
    wait_for(lambda: under_way(first), "the first row does not begin")
    (worker,) = workers(runner.pid)
    worker.kill()
    wait_for(lambda: under_way(second), "the second row does not begin")
    (worker,) = workers(runner.pid)
    runner.kill()
    out, _ = runner.communicate()
    assert "rate=0.1 seed 0: its process ended (SIGKILL); it is started again" in out
    psutil.wait_procs([worker], timeout=HANG_SECONDS)
    assert not worker.is_running()
    assert 0 < len(left_by(killed)) < 8
    code, out = run_sweep(file, f"--workdir={killed}")
    assert code == errors.EXIT_DONE
    assert "4 runs of 2 rows: 2 complete, 2 to do" in out
    assert left_by(killed) == left_by(whole)
    reported = [json.loads((path / "results.json").read_text()) for path in (killed, whole)]
    for report in reported:
        assert report.pop("times").keys() == {f"{n}, seed {i}" for n in ROWS for i in range(2)}
    assert reported[0] == reported[1]
    log = (killed / "logs" / "worker_0.log").read_text()
    assert len(re.findall(r"resumes after update \d+ from", log)) == 2


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_told_to_stop_saves_and_goes_on(tmp_path, number):
    file, folder = write_sweep(tmp_path / "tiny.py", updates=80), tmp_path / "runs"
    words = [file, f"--workdir={folder}", "--parallel=2", "--seeds=1"]
    runner = start_sweep(*words)
    metrics = [SweepFolder(folder).seed(row, 0) / "metrics.jsonl" for row in read_sweep(file).rows]
    wait_for(lambda: all(p.exists() and p.stat().st_size for p in metrics), "nothing begins")
    runner.send_signal(number)
    out, _ = runner.communicate(timeout=HANG_SECONDS)
    assert runner.returncode == errors.EXIT_PREEMPTED, out
    assert "stopped: 0 of 2 runs done; the same command resumes" in out
    for path in metrics:
        last = json.loads(path.read_text().splitlines()[-1])["step"]
        assert (path.parent / "checkpoints" / str(last)).is_dir()
    code, out = run_sweep(*words)
    assert code == errors.EXIT_DONE, out
    for path in metrics:
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert sorted(set(steps)) == list(range(1, 81))


@pytest.mark.long
def test_added_seeds_and_rows_leave_the_others_as_they_are(tmp_path):
    file, folder = write_sweep(tmp_path / "tiny.py"), tmp_path / "runs"
    assert run_sweep(file, f"--workdir={folder}", "--seeds=1")[0] == errors.EXIT_DONE
    old = [SweepFolder(folder).seed(row, 0) for row in read_sweep(file).rows]
    before = [files(path) for path in old]
    write_sweep(tmp_path / "tiny.py", {"kn=16": {"batch_size": 16}, **ROWS})
    code, out = run_sweep(file, f"--workdir={folder}", "--seeds=3")
    assert code == errors.EXIT_DONE, out
    assert "9 runs of 3 rows: 2 complete, 7 to do" in out
    assert [files(path) for path in old] == before
    assert len(left_by(folder)) == 18
    rows = SweepFolder(folder).read().rows
    assert [row.name for row in rows] == ["kn=16", *ROWS]


@pytest.mark.long
def test_a_run_that_diverges_or_fails_is_a_row_with_its_reason(tmp_path):
    """The others are run, before and after it; what failed is tried again."""
    rows = {
        "diverges": {"learning_rate.reference_learning_rate": 1e15},
        "no data": {"data.source": "folder", "data.dir": str(tmp_path / "none")},
        "good": {},
    }
    file, folder = write_sweep(tmp_path / "tiny.py", rows, updates=8), tmp_path / "runs"
    words = [file, f"--workdir={folder}", "--seeds=1"]
    code, out = run_sweep(*words)
    assert code == errors.EXIT_FAILED, out
    assert re.search(r"diverges seed 0: diverged: .* is not finite .*\(1 of 3 runs done\)", out)
    assert re.search(r"no data seed 0: failed: .*none.* \(2 of 3 runs done\)", out)
    assert re.search(r"good seed 0: validation error .* \(3 of 3 runs done\)", out)
    assert re.search(r"no_data_\w+/seed_0 failed: ", out.splitlines()[-2])
    assert out.splitlines()[-1] == f"logs: {folder}/logs"
    code, out = run_sweep(*words, "--list")
    assert code == errors.EXIT_DONE
    assert "3 runs of 3 rows: 1 complete, 1 diverged, 1 to do" in out
    assert "  diverges: 1 diverged\n" in out
    assert "  no data: 1 failed\n" in out
    code, out = run_sweep(*words)
    assert code == errors.EXIT_FAILED, out
    assert out.count("runs done)") == 1  # of the one that failed alone


@pytest.mark.long
def test_rows_share_a_process_and_compute_what_they_would_alone(tmp_path):
    """Bit by bit, of all kinds in one process: float64, then float32, then a stop at a target."""
    rows = {
        "float64": {"dtype": "float64"},
        "float32": {},
        "target": {"stop_at": ("val_error", 100.0)},
        "float64 again": {"dtype": "float64", "batch_size": 64},
    }
    file, together = write_sweep(tmp_path / "tiny.py", rows, updates=6), tmp_path / "together"
    assert run_sweep(file, f"--workdir={together}", "--seeds=1")[0] == errors.EXIT_DONE
    alone = tmp_path / "alone"
    for name in rows:
        words = [file, f"--workdir={alone}", "--seeds=1", "--only", name]
        assert run_sweep(*words)[0] == errors.EXIT_DONE
    assert left_by(together) == left_by(alone)
    assert len(left_by(alone)) == 8


@pytest.mark.long
def test_a_job_that_kills_its_process_has_failed_after_three_starts(tmp_path, monkeypatch):
    """Its loss ends the process; the row after it is run."""
    (tmp_path / "deadly.py").write_text("import os\ndef loss(logits, labels):\n    os.abort()\n")
    monkeypatch.chdir(tmp_path)
    rows = {"deadly": {"task.loss": "deadly:loss"}, "good": {}}
    file, folder = write_sweep(tmp_path / "tiny.py", rows), tmp_path / "runs"
    code, out = run_sweep(file, f"--workdir={folder}", "--seeds=1")
    assert code == errors.EXIT_FAILED, out
    assert out.count("deadly seed 0: its process ended (SIGABRT); it is started again") == 2
    assert "deadly seed 0: failed: its process ended (SIGABRT) 3 times in a row; the last" in out
    assert "good seed 0: validation error" in out


@pytest.mark.long
def test_a_second_runner_is_told_of_the_first(tmp_path):
    file, folder = write_sweep(tmp_path / "tiny.py", updates=3000), tmp_path / "runs"
    first = start_sweep(file, f"--workdir={folder}")
    wait_for((folder / "sweep.json").exists, "it does not begin")
    code, out = run_sweep(file, f"--workdir={folder}")
    assert code == errors.EXIT_USER
    assert re.fullmatch(rf"lbsgd: the sweep in \S+ is being run by process {first.pid} .*\n", out)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=HANG_SECONDS)
    assert first.returncode == errors.EXIT_PREEMPTED


@pytest.mark.long
def test_a_second_ctrl_c_kills_all(tmp_path):
    file, folder = write_sweep(tmp_path / "tiny.py", updates=10**5), tmp_path / "runs"
    runner = start_sweep(file, f"--workdir={folder}", "--parallel=2")
    wait_for(lambda: len(list(folder.glob("*/*/metrics.jsonl"))) == 2, "nothing begins")
    processes = workers(runner.pid)
    for process in processes:
        process.suspend()  # so that none saves and ends before the second
    runner.send_signal(signal.SIGINT)
    time.sleep(1.0)
    runner.send_signal(signal.SIGINT)
    out, _ = runner.communicate(timeout=HANG_SECONDS)
    assert runner.returncode == errors.EXIT_INTERRUPTED, out
    psutil.wait_procs(processes, timeout=HANG_SECONDS)
    assert not any(process.is_running() for process in processes)


@pytest.mark.long
def test_a_row_is_tuned_and_then_run_with_fresh_seeds(tmp_path):
    """Points are added later: those of before stay, and the best of all must be among them."""
    key = "learning_rate.reference_learning_rate"
    settings = f'seeds=2, tune={{"{key}": (1e-4, 0.5, "log")}}, tune_points='
    path, folder = tmp_path / "tiny.py", tmp_path / "runs"
    file = write_sweep(path, {"tuned": {}}, updates=24, settings=settings + "3")
    code, out = run_sweep(file, f"--workdir={folder}", "--parallel=2")
    assert code == errors.EXIT_DONE, out
    assert "5 runs of 1 row: 5 to do" in out

    def of(name):
        workdir = folder / "tuned" / name
        config = json.loads((workdir / "config.json").read_text())["config"]
        return (
            config["learning_rate"]["reference_learning_rate"],
            config["seed"],
            json.loads((workdir / "result.json").read_text())["final"],
        )

    points = [of(f"tune_{i}") for i in range(3)]
    assert [seed for _, seed, _ in points] == [1_000_000] * 3
    chosen = min(points, key=lambda point: point[2])[0]
    assert [of(f"seed_{seed}")[:2] for seed in range(2)] == [(chosen, 0), (chosen, 1)]
    before = files(folder / "tuned")
    write_sweep(path, {"tuned": {}}, updates=24, settings=settings + "5")
    code, out = run_sweep(file, f"--workdir={folder}")
    assert {
        path: found for path, found in files(folder / "tuned").items() if path in before
    } == before
    values = [of(f"tune_{i}") for i in range(5)]
    changed = min(values, key=lambda point: point[2])[0] != chosen
    assert code == (errors.EXIT_FAILED if changed else errors.EXIT_DONE)
    assert ("another point is the best" in out) == changed


@pytest.mark.long
def test_a_plan_and_a_list_run_nothing(tmp_path):
    file, folder = write_sweep(tmp_path / "tiny.py"), tmp_path / "runs"
    code, out = run_sweep(file, f"--workdir={folder}", "--dry_run")
    assert code == errors.EXIT_DONE
    assert "\nrate=0.1: 2 of 2 runs to do\n  network: cifar_resnet8" in out
    assert "minibatch: kn=32" in out
    assert not folder.exists()


def test_listing_needs_no_jax(tmp_path):
    """In a process of its own, which has not imported it."""
    file = write_sweep(tmp_path / "tiny.py")
    words = ["run", file, f"--workdir={tmp_path}/runs", "--list"]
    program = f"from lbsgd.experiments import command; command.main({words!r})"
    program += "; import sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True)


@pytest.mark.long
@pytest.mark.parametrize("at_once", [0, 2])
def test_seeds_at_once_are_the_runs_they_would_be(tmp_path, at_once):
    """To rounding, which in float64 is far below 1e-9 after so few updates."""
    file = write_sweep(tmp_path / "tiny.py", {"x": {"dtype": "float64"}}, 6, "seeds=3")
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run_sweep(file, f"--workdir={alone}")[0] == errors.EXIT_DONE
    code, out = run_sweep(file, f"--workdir={together}", f"--seeds_at_once={at_once}")
    assert code == errors.EXIT_DONE, out
    assert len(re.findall(r"x seed \d: validation error .*\(\d of 3 runs done\)", out)) == 3
    log = (together / "logs" / "worker_0.log").read_text()
    assert f"=== x seed 0 to {1 if at_once else 2}, together" in log
    expected, found = left_by(alone), left_by(together)
    assert found.keys() == expected.keys()
    for seed in range(3):
        lines = [left[f"x/seed_{seed}/metrics.jsonl"] for left in (found, expected)]
        for here, there in zip(*lines, strict=True):
            assert here == pytest.approx(there, rel=1e-9, abs=1e-12)
