"""Mistakes made on purpose: each is the mistake that it says it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import final_state, tiny_config

from lbsgd import train
from lbsgd.experiments.wrong import scaled_loss
from lbsgd.system.errors import ConfigError
from lbsgd.tasks.build import build_task, check_task
from lbsgd.tasks.classification import classification

LOGITS = jnp.asarray(np.random.default_rng(5).normal(size=(6, 8)).astype(np.float32))
BATCH = {"label": jnp.asarray([0, 3, 7, 3, 5, 1])}
NAME = "lbsgd.experiments.wrong:scaled_loss"


@pytest.mark.parametrize("factor", [32.0, 0.5])
def test_loss_and_gradient_are_multiplied_and_nothing_else(factor):
    right, wrong = classification(8), scaled_loss(8, factor)
    assert wrong.numbers == {"factor": factor}
    number = jnp.float32(factor)
    gradient, metrics = jax.grad(lambda x: right.loss(x, BATCH), has_aux=True)(LOGITS)
    found, others = jax.grad(lambda x: wrong.loss(x, BATCH, factor=number), has_aux=True)(LOGITS)
    np.testing.assert_allclose(found, factor * gradient, rtol=1e-6)
    assert others == metrics
    for name, values in right.evaluate(LOGITS, BATCH).items():
        np.testing.assert_array_equal(wrong.evaluate(LOGITS, BATCH)[name], values)


def test_a_config_names_it():
    config = tiny_config(**{"task.name": NAME, "task.options": {"factor": 8.0}})
    task = build_task(config, 8)
    check_task(task, jax.ShapeDtypeStruct((1, 8), np.float32), (8, 8, 1))
    assert task.numbers == {"factor": 8.0}


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf"), "8", True])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(ConfigError, match="must be a positive number"):
        scaled_loss(8, factor)


@pytest.mark.long
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_remark_1(decay, tmp_path):
    """To scale the loss is to scale the rate, but for weight decay."""
    keys = {"optimizer.weight_decay": decay, "dtype": "float64", "learning_rate.scaling": "none"}
    keys |= {"learning_rate.warmup": "none"}
    rate = {"learning_rate.reference_learning_rate": 0.4}
    loss = {"learning_rate.reference_learning_rate": 0.1, "task.name": NAME}
    loss |= {"task.options": {"factor": 4.0}}
    ends = []
    for name, change in (("rate", rate), ("loss", loss)):
        config = tiny_config(**keys, **change)
        train.run(config, tmp_path / name)
        ends.append(final_state(config, tmp_path / name))
    scaled, other = ends
    kernels = [key for key in scaled if "params" in key and "kernel" in key]
    assert kernels
    apart = max(np.abs(scaled[key] - other[key]).max() for key in kernels)
    # A run of a few updates, in float64; weights of about 0.1 that decay by 4% of themselves.
    assert apart < 1e-9 if decay == 0 else apart > 1e-4
