"""Small runs, workers with known gradients, and a plain loop over workers."""

import jax
import jax.numpy as jnp
import numpy as np

from lbsgd.run.build import Run, build
from lbsgd.run.config import default_config, resolve
from lbsgd.step.worker import WorkerResult

N = 2


def small_run(workers: int, devices: int, steps: int, **keys: object) -> Run:
    """A narrow network in float64, and k workers of 2 examples."""
    config = default_config()
    config.update(
        {
            "dtype": "float64",
            "batch_size": N * workers,
            "worker_batch_size": N,
            "total_steps": 20,
            "devices": devices,
            "accumulation_steps": steps,
            "label_smoothing": 0.1,
            "model": {"name": "cifar_resnet8", "width": 0.25},
            "learning_rate": {"warmup": "none"},
            "data": {"crop": "padded", "crop_padding": 1},
        }
    )
    config.update_from_flattened_dict(keys)
    return build(resolve(config))


def written_out(parts: Run, state, rows) -> np.ndarray:
    """Each worker's gradient by `jax.grad`, one after the other, `[k, P]`."""

    numbers = parts.program.numbers.at(int(state.update_index))

    def loss(params, row, index):
        return parts.plan.worker(params, state.batch_stats, numbers, row, index).loss

    def flat(tree) -> np.ndarray:
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))])

    gradient = jax.jit(jax.grad(loss))
    each = (({key: x[j] for key, x in rows.items()}, j) for j in range(len(rows["label"])))
    return np.stack([flat(gradient(state.params, row, jnp.int32(j))) for row, j in each])


def quadratic_worker(params, batch_stats, numbers, batch, index) -> WorkerResult:
    """Loss 1/2 (w - x)^T H (w - x): an example's gradient is H (w - x); H is diagonal."""
    curvature = params["curvature"]
    away = params["w"][None] - batch["x"]
    loss = 0.5 * jnp.mean(jnp.sum(jax.lax.stop_gradient(curvature)[None] * away**2, axis=1))
    return WorkerResult(loss, {}, batch_stats)


def linear_worker(params, batch_stats, numbers, batch, index) -> WorkerResult:
    """Its gradient is the mean of its rows."""
    loss = jnp.mean(batch["x"] @ params["w"])
    return WorkerResult(loss, {}, batch_stats)
