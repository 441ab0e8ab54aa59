"""Training with group norm and with none, in float64: an example's gradient is its own.

Without batch norm nothing depends on who shares a worker, so an update is that of `jax.grad` of the
mean loss over the kn examples in one, however the workers lie.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.build import Run, build
from lbsgd.config import default_config, resolve

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
        logits = run.model.apply({"params": params}, (images / 255 - 0.5) / 0.5, train=True)
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
    for batch in run.train_batches().between(0, UPDATES):
        # Slots past the last worker are idle.
        images = np.asarray(batch["image"], np.float64).reshape(-1, 8, 8, 1)[:6]
        labels = np.asarray(batch["label"]).reshape(-1)[:6]
        value, params, buffers = update(params, buffers, images, labels)
        history.append((float(value), jax.device_get(params)))
    return history


@pytest.mark.parametrize("normalization", ["group", "none"])
def test_training_is_that_of_all_examples_at_once(x64, normalization):
    """On two devices of one lane, in two steps with an idle slot, against one device, by hand."""
    run = run_on(2, 2, normalization)
    assert run.placement.slots > run.placement.workers
    step, state = run.compile_train_step(), run.start()
    assert jax.tree.leaves(state.batch_stats) == []
    start = jax.device_get(state.params)
    expected = by_hand(run, start)
    for batch, (loss, params) in zip(run.train_batches().between(0, UPDATES), expected):
        state, metrics = step(state, batch)
        assert float(metrics["train_loss"]) == pytest.approx(loss, rel=1e-9)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            jax.device_get(state.params),
            params,
        )
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(expected[-1][1])):
        assert np.abs(after - before).max() > 1e-4
