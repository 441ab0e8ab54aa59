"""Runs that share a process compute what they would alone."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from lbsgd import train
from lbsgd.checkpoint.saving import Checkpoints
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve

ROOT = pathlib.Path(__file__).parents[2]
UPDATES = 3
KEYS = {
    "batch_size": 64,
    "worker_batch_size": 16,
    "devices": 2,
    "total_steps": UPDATES,
    "model.name": "cifar_resnet8",
    "model.width": 0.25,
    "learning_rate.warmup": "none",
    "batch_norm.precise_examples": 64,
    "log.every_steps": 1,
    "log.sinks": (),
}


def config_of(dtype: str):
    config = default_config()
    config.update_from_flattened_dict({**KEYS, "dtype": dtype})
    return resolve(config)


def result_of(workdir: pathlib.Path, dtype: str) -> dict[str, np.ndarray]:
    """The last state and all metrics but the times, bit by bit."""
    plan, program, _ = build(config_of(dtype))
    checkpoints = Checkpoints(workdir / "checkpoints", 1, plan.identity(), say=pytest.fail)
    update, state = checkpoints.restore(program.abstract_state())
    assert update == UPDATES
    found = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        timed = ("images_per_second", "data_wait_percent")
        found |= {f"{values['step']} {k}": v for k, v in values.items() if k not in timed}
    return {name: np.asarray(x) for name, x in found.items()}


def assert_bitwise(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.long
def test_float32_after_float64_is_float32_before(tmp_path):
    before = jax.config.jax_enable_x64
    for name, dtype in (("a", "float32"), ("b", "float64"), ("c", "float32")):
        assert train.run(config_of(dtype), tmp_path / name).complete
        assert jax.config.jax_enable_x64 is before
    first, double, second = (
        result_of(tmp_path / name, dtype)
        for name, dtype in (("a", "float32"), ("b", "float64"), ("c", "float32"))
    )
    assert_bitwise(second, first)
    kinds = {x.dtype for name, x in double.items() if "params" in name}
    assert kinds == {np.dtype(np.float64)}


@pytest.mark.long
def test_each_is_what_it_is_in_a_process_of_its_own(tmp_path):
    """Where 64-bit types are on from the start, a run in float32 is that run too."""
    for name, dtype in (("shared64", "float64"), ("shared32", "float32")):
        train.run(config_of(dtype), tmp_path / name)
    flags = [f"--config.{key}={value}" for key, value in KEYS.items()]
    (tmp_path / "bare.py").write_text(
        "from lbsgd.run.config import default_config\n\n\ndef get_config(arg=''):\n"
        "    return default_config()\n"
    )
    # As many as here: XLA has a thread for each, and their number decides how sums are split.
    devices = str(jax.config.jax_num_cpu_devices)
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": devices}
    for dtype, x64 in (("float64", "0"), ("float32", "0"), ("float32", "1")):
        workdir = tmp_path / f"alone_{dtype}_{x64}"
        command = [sys.executable, "-m", "lbsgd.main", "--config", str(tmp_path / "bare.py")]
        command += [f"--workdir={workdir}", f"--config.dtype={dtype}", *flags]
        own = {"JAX_ENABLE_X64": x64, "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
        done = subprocess.run(
            ["env", *(f"{k}={v}" for k, v in {**environment, **own}.items()), *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        shared = tmp_path / f"shared{dtype[5:]}"
        assert_bitwise(result_of(shared, dtype), result_of(workdir, dtype))
