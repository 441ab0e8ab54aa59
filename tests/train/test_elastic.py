"""A run goes on elsewhere: other devices, processes and accumulation steps, the same trajectory.

Its batch grows from 64 to 128 after 8 of 20 updates.
"""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from hanging import HANG_SECONDS

from lbsgd import train
from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.data.pipeline import load_job
from lbsgd.run.build import build
from lbsgd.run.config import resolve
from lbsgd.run.record.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
UPDATES, SHORT = 20, 6
TIMES = ("images_per_second", "data_wait_percent")

CONFIG = f"""
import ml_collections
from lbsgd.run.config import default_config

def get_config(arg=""):
    config = default_config()
    config.update(ml_collections.ConfigDict({{
        "dtype": "float64",
        "batch_size": 64,
        "worker_batch_size": 8,
        "total_steps": {UPDATES},
        "batch_growth": {{"sizes": (128,), "at_steps": (8,), "compensate": "momentum"}},
        "model": {{"name": "cifar_resnet8", "width": 0.25}},
        "learning_rate": {{"reference_batch_size": 16, "warmup_epochs": 0.2}},
        "data": {{"crop": "padded", "crop_padding": 1, "flip": True}},
        "evaluation": {{"every_steps": 6}},
        "log": {{"every_steps": 1, "sinks": ()}},
    }}))
    if arg == "short":  # to compile little
        config.update({{"total_steps": {SHORT}, "batch_growth": {{"sizes": (), "at_steps": ()}}}})
    return config
"""


def config_at(devices: int = 0, steps: int = 1, arg: str = ""):
    namespace: dict = {}
    exec(CONFIG, namespace)
    config = namespace["get_config"](arg)
    config.devices, config.accumulation_steps = devices, steps
    return resolve(config)


def final_state(workdir: pathlib.Path, arg: str, updates: int) -> list[np.ndarray]:
    parts = build(config_at(1, arg=arg))
    checkpoints = Checkpoints(workdir / "checkpoints", 9, parts.plan.identity(), say=pytest.fail)
    update, state = checkpoints.restore(parts.program.abstract_state())
    checkpoints.close()
    assert update == updates
    return jax.tree.leaves(state)


def assert_same_run(
    found: pathlib.Path, expected: pathlib.Path, arg: str = "", updates: int = UPDATES
) -> None:
    """Metrics and final state to summation order; each update and evaluation once."""
    there, here = (read_metrics(w / "metrics.jsonl") for w in (found, expected))
    assert [line["step"] for line in there] == [line["step"] for line in here]
    for one, other in zip(there, here):
        assert one.keys() - set(TIMES) == other.keys() - set(TIMES)
        for key in one.keys() - set(TIMES):
            assert one[key] == pytest.approx(other[key], rel=1e-9, abs=1e-9), key
    for one, other in zip(final_state(found, arg, updates), final_state(expected, arg, updates)):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert train.run(config_at(8), workdir).complete
    yield workdir
    jax.config.update("jax_enable_x64", before)


# Devices, accumulation steps, and the update to stop after.
CHAINS = {
    "devices": [(1, 1, 4), (4, 1, 9), (2, 1, 13), (3, 1, UPDATES)],
    "accumulation": [(2, 1, 7), (2, 4, UPDATES)],
    "both": [(1, 1, 3), (4, 2, 7), (2, 4, 12), (3, 1, UPDATES)],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("devices", marks=pytest.mark.long),
        pytest.param("accumulation", marks=pytest.mark.long),
        pytest.param("both", marks=pytest.mark.long),
    ],
)
def test_a_chain_of_machines_makes_one_run(uninterrupted, tmp_path, name):
    for devices, steps, stop in CHAINS[name]:
        outcome = train.run(
            config_at(devices, steps),
            tmp_path,
            should_stop=lambda done, stop=stop: done == stop < UPDATES,
        )
        assert outcome.updates == stop
    assert_same_run(tmp_path, uninterrupted)


def start_group(
    tmp_path: pathlib.Path, workdir: pathlib.Path, processes: int, devices: int, arg: str = ""
):
    (tmp_path / "chain.py").write_text(CONFIG)
    command = [
        sys.executable,
        "-m",
        "lbsgd.main",
        "launch",
        f"--num_processes={processes}",
        f"--devices_per_process={devices}",
        "--platform=cpu",
        "--max_restarts=0",
        "--",
        f"--config={tmp_path / 'chain.py'}:{arg}",
        f"--workdir={workdir}",
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS)


@pytest.mark.long
def test_two_processes_train_as_one(x64, tmp_path):
    """A few updates and an evaluation."""
    assert train.run(config_at(2, arg="short"), tmp_path / "one").complete
    done = start_group(tmp_path, tmp_path / "two", 2, 1, "short")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "two", tmp_path / "one", "short", SHORT)


@pytest.mark.long
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_processes_train_as_one(uninterrupted, tmp_path, processes, devices):
    """As one process with eight devices does, from the start and after half of it elsewhere."""
    workdir = tmp_path / "run"
    if processes == 2:  # one process, then two
        train.run(config_at(4), workdir, should_stop=lambda done: done == 10)
    done = start_group(tmp_path, workdir, processes, devices)
    assert done.returncode == 0, done.stderr
    assert_same_run(workdir, uninterrupted)
    logs = sorted(path.name for path in (workdir / "logs").iterdir())
    assert logs == [f"{i}.log" for i in range(processes)]


# What a process loads for a few updates: examples, and the augmented images.
LOAD = """
import pathlib, runpy, sys
import jax
import numpy as np
from lbsgd.launch import startup
from lbsgd.run.build import build
from lbsgd.run.config import resolve
from lbsgd.data.pipeline import load_job

folder, port, processes, process = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
config = resolve(runpy.run_path(str(folder / "chain.py"))["get_config"]())
startup.start_processes(f"127.0.0.1:{port}", processes, process, config.runtime)
batches = build(config).feed.train_batches()
arrays = {}
for update in (0, 7, 23):
    place = batches.placement(update)
    arrays[f"{update} slots"] = np.arange(place.devices * place.lanes)[place.local_slots()]
    arrays |= {f"{update} {k}": x for k, x in load_job(batches.job(update)).items()}
    arrays[f"{update} examples"] = batches.examples(update)[1]
np.savez(folder / f"{process}.npz", **arrays)
"""


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_load_the_examples_of_one_bitwise(x64, tmp_path, processes):
    """Each the rows of its own slots; put together, the batch that one process loads."""
    (tmp_path / "chain.py").write_text(CONFIG)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(8 // processes)}
    group = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, *map(str, (tmp_path, port, processes, i))],
            cwd=ROOT,
            env=env,
        )
        for i in range(processes)
    ]
    assert [process.wait(timeout=HANG_SECONDS) for process in group] == [0] * processes
    parts = [np.load(tmp_path / f"{i}.npz") for i in range(processes)]
    whole = build(config_at(8)).feed.train_batches()
    for update, count in ((0, 8), (7, 8), (23, 16)):
        slots = [part[f"{update} slots"] for part in parts]
        assert sorted(np.concatenate(slots)) == list(range(count))
        expected = load_job(whole.job(update)) | {"examples": whole.examples(update)[1]}
        for key, array in expected.items():
            for part, mine in zip(parts, slots):
                np.testing.assert_array_equal(part[f"{update} {key}"], array[:, mine])
