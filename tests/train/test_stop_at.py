"""A run that ends at its target: there, on a second start, after a stop, and in two processes."""

import json
import pathlib
import subprocess
import sys

import pytest

from lbsgd import train
from lbsgd.run.config import resolve
from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
UPDATES = 12

# Evaluations after 2, 5, 8, 11 and 12 updates; a checkpoint is due after none of them but the last.
CONFIG = f"""
import ml_collections
from lbsgd.run.config import default_config

def get_config(arg=""):
    config = default_config()
    config.update(ml_collections.ConfigDict({{
        "batch_size": 64,
        "worker_batch_size": 16,
        "total_steps": {UPDATES},
        "model": {{"name": "cifar_resnet8", "width": 0.25}},
        "learning_rate": {{"reference_batch_size": 16, "warmup_epochs": 0.2}},
        "optimizer": {{"momentum_form": "rate_inside"}},
        "evaluation": {{"every_steps": 3, "offset_steps": 2}},
        "checkpoint": {{"every_steps": 7}},
        "log": {{"every_steps": 1, "sinks": ()}},
    }}))
    return config
"""


def config_with_target(*stop_at: object, devices: int = 2):
    namespace: dict = {}
    exec(CONFIG, namespace)
    config = namespace["get_config"]()
    config.stop_at, config.devices = stop_at, devices
    return resolve(config)


def metrics(workdir: pathlib.Path) -> list[dict]:
    """Without what is different each time."""
    lines = read_metrics(workdir / "metrics.jsonl")
    timed = ("images_per_second", "data_wait_percent")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def saved(workdir: pathlib.Path) -> int:
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir())


def result(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "result.json").read_text())


def test_a_run_ends_at_its_target_and_a_second_start_does_nothing(tmp_path, capsys):
    """At its first evaluation, for any error is at most 100%."""
    config = config_with_target("val_error", 100.0)
    outcome = train.run(config, tmp_path)
    assert (outcome.updates, outcome.complete, saved(tmp_path)) == (2, True, 2)
    (evaluation,) = (line for line in metrics(tmp_path) if "val_error" in line)
    assert evaluation["step"] == metrics(tmp_path)[-1]["step"] == 2
    epochs = 2 * 64 / 1437
    reached = {"reached": True, "updates": 2, "epochs": pytest.approx(epochs, abs=1e-6)}
    found = result(tmp_path)
    error = {"final": outcome.final, "unit": "%", "rises": False, "words": "error"}
    assert found["metrics"].pop("val_error") == error
    assert found.pop("metrics").keys() == {"val_error_top5", "val_loss"}
    assert found == {
        "updates": 2,
        "epochs": pytest.approx(epochs),
        "complete": True,
        "headline": "val_error",
        "final": outcome.final,
        "final_evaluations": 1,
        "last": outcome.final,
        "best": outcome.final,
        "best_updates": 2,
        "target": {"metric": "val_error", "value": 100.0, **reached},
    }
    said = "target reached: val_error of at most 100, after 2 updates = 0.08907 epochs ("
    first = capsys.readouterr().out
    assert said in first
    assert "5 evaluations, the first after update 2 (epoch 0.08907); ends at the first" in first
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert train.run(config, tmp_path) == outcome
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    again = capsys.readouterr().out
    assert "is complete: 2 updates are done, and the target was reached, val_error of" in again
    assert said in again
    assert "compiled" not in again


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a target."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train.run(config_with_target(), workdir).updates == UPDATES
    return workdir


def a_target(workdir: pathlib.Path) -> tuple[int, tuple[str, float]]:
    """An evaluation neither first nor last that is better than all before, and it as a target."""
    losses = {line["step"]: line["val_loss"] for line in metrics(workdir) if "val_loss" in line}
    steps = [2, 5, 8, 11]
    assert list(losses) == [*steps, 12]
    step = next(s for s in (5, 8, 11) if losses[s] < min(losses[t] for t in steps if t < s))
    return step, ("val_loss", losses[step])


def up_to(workdir: pathlib.Path, step: int) -> list[dict]:
    return [line for line in metrics(workdir) if line["step"] <= step]


@pytest.mark.long
@pytest.mark.parametrize("stops", [(), (1,), (4, 4), (5,), (2, 5)])
def test_it_is_the_same_run_up_to_its_target(whole, tmp_path, stops):
    """Stopped before, or in the evaluation that reaches it; and on to the end without a target."""
    step, target = a_target(whole)
    for stop in stops:
        stop = min(stop, step)
        outcome = train.run(
            config_with_target(*target), tmp_path, should_stop=lambda done, s=stop: done == s
        )
        assert (outcome.updates, outcome.complete) == (stop, False)
        assert result(tmp_path)["target"]["reached"] is False
    outcome = train.run(config_with_target(*target), tmp_path)
    assert (outcome.updates, outcome.complete, saved(tmp_path)) == (step, True, step)
    assert metrics(tmp_path) == up_to(whole, step)
    assert train.run(config_with_target(), tmp_path).updates == UPDATES
    assert metrics(tmp_path) == metrics(whole)


@pytest.mark.long
def test_a_killed_run_reaches_its_target_again(whole, tmp_path):
    """It is killed after the evaluation, before it could save: it starts anew, and ends there."""
    step, target = a_target(whole)

    def kill(done: int) -> bool:
        if any(line["step"] == step and "val_loss" in line for line in metrics(tmp_path)):
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        train.run(config_with_target(*target), tmp_path, should_stop=kill)
    assert not (tmp_path / "result.json").exists()
    assert train.run(config_with_target(*target), tmp_path).updates == step
    assert metrics(tmp_path) == up_to(whole, step)


@pytest.mark.long
def test_a_target_that_is_not_reached_is_said_at_the_end(whole, tmp_path, capsys):
    outcome = train.run(config_with_target("val_accuracy", 100.0), tmp_path)
    assert (outcome.updates, outcome.complete) == (UPDATES, True)
    assert metrics(tmp_path) == metrics(whole)
    best = 100 - min(line["val_error"] for line in metrics(whole) if "val_error" in line)
    line = f"target not reached: val_accuracy of at least 100 (the best was {best:.6g})"
    assert line in capsys.readouterr().out.splitlines()
    assert result(tmp_path)["target"]["reached"] is False


def launch(tmp_path: pathlib.Path, workdir: pathlib.Path, target: tuple[str, float]):
    """The run in two processes."""
    (tmp_path / "config.py").write_text(CONFIG)
    command = [sys.executable, "-m", "lbsgd.main", "launch", "--num_processes=2", "--platform=cpu"]
    command += ["--max_restarts=0", "--", f"--config={tmp_path / 'config.py'}"]
    command += [f"--config.stop_at={target!r}", f"--workdir={workdir}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.long
@pytest.mark.parametrize("before", [0, 3])
def test_two_processes_end_at_the_target_together(whole, tmp_path, before):
    """From the start, or after a part of it in one; started again, both do nothing."""
    step, (metric, value) = a_target(whole)
    target = (metric, value * (1 + 1e-5))  # for sums in another order
    workdir = tmp_path / "run"
    if before:
        config = config_with_target(*target)
        train.run(config, workdir, should_stop=lambda done: done == before)
    done = launch(tmp_path, workdir, target)
    assert done.returncode == 0, done.stderr
    assert f"target reached: val_loss of at most {target[1]:g}, after {step} updates" in done.stdout
    assert saved(workdir) == step
    assert [line["step"] for line in metrics(workdir)] == [s["step"] for s in up_to(whole, step)]
    again = launch(tmp_path, workdir, target)
    assert again.returncode == 0, again.stderr
    assert f"is complete: {step} updates are done, and the target was reached" in again.stdout
    assert f"done after update {step}" in (workdir / "logs" / "1.log").read_text()
    assert len(metrics(workdir)) == len(up_to(whole, step))
