"""Training with group norm and with none, in float64: an example's gradient is its own.

Without batch norm nothing depends on who shares a worker, so an update is that of `jax.grad` of the
mean loss over the kn examples in one, however the workers lie.
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd import train
from lbsgd.run.build import Run, build
from lbsgd.run.config import default_config, flatten, resolve

TIMES = ("images_per_second", "data_wait_percent")
UPDATES, RATE, MOMENTUM, DECAY = 20, 0.05, 0.9, 0.01


def run_on(devices: int, steps: int, normalization: str, **keys: object) -> Run:
    """Three workers of 2 handwritten digits, so that slots can be idle."""
    config = default_config()
    config.update(
        {
            "dtype": "float64",
            "batch_size": 6,
            "worker_batch_size": 2,
            "total_steps": UPDATES,
            "devices": devices,
            "accumulation_steps": steps,
            "model": {
                "name": "cifar_resnet8",
                "width": 0.125,
                "normalization": normalization,
                "zero_init_residual": False,
            },
            "learning_rate": {
                "reference_learning_rate": RATE,
                "scaling": "none",
                "warmup": "none",
                "decay": "none",
            },
            "optimizer": {"momentum": MOMENTUM, "nesterov": False, "weight_decay": DECAY},
        }
    )
    config.update_from_flattened_dict(keys)
    return build(resolve(config))


def by_hand(run: Run, params) -> list[tuple[float, object]]:
    """Losses and parameters of each update: one network, all examples at once, SGD in full."""

    def loss(params, images, labels):
        logits = run.plan.network.module.apply(
            {"params": params}, (images / 255 - 0.5) / 0.5, train=True
        )
        log_p = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=1, keepdims=True))
        return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))

    @jax.jit
    def update(params, buffers, images, labels):
        value, gradient = jax.value_and_grad(loss)(params, images, labels)

        def buffer(v, g, w):  # kernels alone decay
            return MOMENTUM * v + g + (DECAY * w if w.ndim > 1 else 0.0)

        buffers = jax.tree.map(buffer, buffers, gradient, params)
        return value, jax.tree.map(lambda w, v: w - RATE * v, params, buffers), buffers

    buffers, history = jax.tree.map(np.zeros_like, params), []
    for batch in run.feed.train_batches().between(0, UPDATES):
        # Slots past the last worker are idle.
        images = np.asarray(batch["image"], np.float64).reshape(-1, 8, 8, 1)[:6]
        labels = np.asarray(batch["label"]).reshape(-1)[:6]
        value, params, buffers = update(params, buffers, images, labels)
        history.append((float(value), jax.device_get(params)))
    return history


@pytest.mark.parametrize("normalization", [pytest.param("group", marks=pytest.mark.long), "none"])
def test_training_is_that_of_all_examples_at_once(x64, normalization):
    """On two devices of one lane, in two steps with an idle slot, against one device, by hand."""
    run = run_on(2, 2, normalization)
    assert run.plan.placement.slots > run.plan.placement.workers
    step, state = run.program.compile_train_step(), run.program.start()
    assert jax.tree.leaves(state.batch_stats) == []
    start = jax.device_get(state.params)
    expected = by_hand(run, start)
    batches = run.feed.train_batches().between(0, UPDATES)
    for update, (batch, (loss, params)) in enumerate(zip(batches, expected)):
        state, metrics = step(state, batch, run.program.numbers.at(update))
        assert float(metrics["train_loss"]) == pytest.approx(loss, rel=1e-9)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            jax.device_get(state.params),
            params,
        )
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(expected[-1][1])):
        assert np.abs(after - before).max() > 1e-4


def lines_of(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Metrics, without times; what is not a number stands there as null."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {k: math.nan if v is None else v for k, v in line.items() if k not in TIMES}
        for line in lines
    ]


@pytest.mark.long
@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
def test_a_run_is_the_same_on_any_devices_and_goes_on_on_others(x64, tmp_path, normalization):
    """With evaluations, diagnostics and checkpoints; by the command, and stopped within."""
    keys = {
        "evaluation.every_steps": 8,
        "checkpoint.every_steps": 8,
        "diagnostics.workers.every_steps": 5,
        "diagnostics.layers.every_steps": 5,
        "diagnostics.confusion.every_steps": 10,
        "diagnostics.confusion.pairs": 2,
        "diagnostics.confusion.batch_size": 8,
        "log.every_steps": 1,
        "log.sinks": (),
    }
    config = run_on(4, 1, normalization, **keys).plan.config
    (tmp_path / "config.py").write_text(
        "from lbsgd.run.config import default_config\n"
        "def get_config(arg=''):\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({dict(flatten(config))!r})\n"
        "    return config\n"
    )

    def main(workdir: pathlib.Path, devices: int, steps: int) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "lbsgd.main", f"--config={tmp_path / 'config.py'}"),
                f"--config.devices={devices}",
                f"--config.accumulation_steps={steps}",
                f"--workdir={workdir}",
            ],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    main(tmp_path / "one", 1, 1)
    stopped = train.run(config, tmp_path / "four", should_stop=lambda done: done == 11)
    assert stopped.updates == 11
    assert "resumes after update 11" in main(tmp_path / "four", 2, 2)
    found, expected = lines_of(tmp_path / "four"), lines_of(tmp_path / "one")
    assert {"val_error", "gradient_noise_scale"} <= {key for line in expected for key in line}
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9, nan_ok=True)
