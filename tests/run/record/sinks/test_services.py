"""Weights & Biases, MLflow and clu, offline: a run writes, and their own files are read back.

The first two are installed for it, each into an environment of its own.
"""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tomllib

import pytest
from hanging import HANG_SECONDS
from tiny_run import UPDATES

from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[4]
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Makes an environment with what an extra of lbsgd installs on top of what is here."""

    def install(extra: str) -> str:
        folder = tmp_path_factory.mktemp(extra)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        python = str(folder / "bin" / "python")
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "those_of_the_tests.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = extras["optional-dependencies"][extra]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        return python

    return install


def call(python: str, code: str, folder: pathlib.Path, *args: str) -> str:
    """Runs Python code in a folder; gives what it prints."""
    done = subprocess.run(
        [python, "-c", code, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=10 * HANG_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TRAIN = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
from lbsgd import train
from tiny_run import tiny_config

def die(done):
    if done == 7 and sys.argv[2] == "killed":
        raise RuntimeError
    return False

name, options = json.loads(sys.argv[1])
config = tiny_config(**{"log.sinks": (name,), "log.sink_options": {name: options}})
try:
    train.run(config, "run", should_stop=die)
except RuntimeError:
    print("killed")
"""


def train_twice(python: str, folder: pathlib.Path, name: str, options: dict) -> list[dict]:
    """Trains, is killed, and resumes after update 4 in another process; gives the metrics."""
    sink = json.dumps([name, options])
    said = call(python, TRAIN, folder, sink, "killed")
    assert said.endswith("killed\n")
    said += call(python, TRAIN, folder, sink, "resumes")
    assert "resumes after update 4 " in said
    assert f"log.sinks={name!r}" not in said
    metrics = read_metrics(folder / "run" / "metrics.jsonl")
    assert {line["step"] for line in metrics} == {*range(1, UPDATES + 1)}
    return metrics


def by_step(lines: list[dict], name: str) -> list[list[float]]:
    """Steps and values of a metric that does not change where a run resumes."""
    return [[line["step"], line[name]] for line in lines if name in line]


NAMES = ("train_loss", "learning_rate", "val_error", "val_loss")

READ_WANDB = """
import json, pathlib, struct, sys
from wandb.proto import wandb_internal_pb2

def records(data):
    # The log of LevelDB: blocks of 32 KiB of pieces, each with a checksum, its length and its kind.
    at, whole = 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""

runs = []
for path in sorted(pathlib.Path("run/wandb").glob("offline-run-*/*.wandb")):
    run = {"lines": []}
    for record in records(path.read_bytes()):
        if record.WhichOneof("record_type") == "run":
            run |= {"id": record.run.run_id, "project": record.run.project}
            run["name"] = record.run.display_name
            run["config"] = {i.key: json.loads(i.value_json) for i in record.run.config.update}
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            line = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in items}
            run["lines"].append({**line, "step": record.history.step.num})
    runs.append(run)
print(json.dumps(runs))
"""


def test_wandb(installed, tmp_path):
    python = installed("wandb")
    options = {"mode": "offline", "project": "of_a_test", "name": "mine"}
    metrics = train_twice(python, tmp_path, "wandb", options)
    first, second = json.loads(call(python, READ_WANDB, tmp_path))
    assert first["id"] == second["id"] == (tmp_path / "run/wandb_run_id.txt").read_text().strip()
    assert (first["project"], first["name"]) == ("of_a_test", "mine")
    assert first["config"]["batch_size"] == 64
    assert first["config"]["optimizer"]["momentum_form"] == "rate_inside"
    lines = [line for line in first["lines"] if line["step"] <= 4] + second["lines"]
    for name in NAMES:
        assert by_step(lines, name) == by_step(metrics, name)


READ_MLFLOW = """
import json
from mlflow.tracking import MlflowClient
client = MlflowClient("sqlite:///store.db")
experiment = client.get_experiment_by_name("of_a_test")
(run,) = client.search_runs([experiment.experiment_id])
names = run.data.metrics
history = {n: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, n)]
           for n in names}
print(json.dumps([run.info.run_id, run.info.run_name, run.info.status, run.data.params, history]))
"""


def test_mlflow(installed, tmp_path):
    python = installed("mlflow")
    options = {"tracking_uri": "sqlite:///store.db", "experiment": "of_a_test"}
    metrics = train_twice(python, tmp_path, "mlflow", options)
    run_id, name, status, params, history = json.loads(call(python, READ_MLFLOW, tmp_path))
    assert run_id == (tmp_path / "run/mlflow_run_id.txt").read_text().strip()
    assert (name, status) == ("run", "FINISHED")
    assert params["batch_size"] == "64"
    assert params["optimizer.momentum_form"] == "rate_inside"
    for name in NAMES:
        assert sorted(history[name]) == by_step(metrics, name)
    steps = [step for step, _ in history["images_per_second"]]
    assert sorted(steps) == list(range(1, UPDATES + 1))


READ_CLU = """
import json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
import tensorflow as tf
events = EventAccumulator("run/clu", size_guidance={"tensors": 0})
events.Reload()
print(json.dumps({
    name: [[e.step, float(tf.make_ndarray(e.tensor_proto))] for e in events.Tensors(name)]
    for name in events.Tags()["tensors"]
}))
"""


def test_clu(tmp_path, monkeypatch):
    # Which tensorflow would stumble over.
    monkeypatch.setenv("MPLBACKEND", "none_that_there_is")
    metrics = train_twice(sys.executable, tmp_path, "clu", {})
    monkeypatch.delenv("MPLBACKEND")
    shown = json.loads(call(sys.executable, READ_CLU, tmp_path))
    for name in NAMES:
        expected = [
            [step, pytest.approx(value, rel=2.0**-24)] for step, value in by_step(metrics, name)
        ]
        # The later of what it has of a step counts, as where TensorBoard shows it.
        assert sorted(dict(shown[name]).items()) == list(map(tuple, expected))
