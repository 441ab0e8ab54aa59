"""The phases of a step are named, in what is given to the compiler and in what it makes of it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lbsgd.step.cpu import cpu_forms
from lbsgd.step.evaluation import eval_step
from lbsgd.step.numbers import Numbers
from lbsgd.step.pixels import normalize
from lbsgd.step.train_step import Averaged, TrainState, train_step
from lbsgd.step.worker import worker_loss
from lbsgd.tasks.classification import classification
from lbsgd.workers.placement import place

PHASES = {
    "augment",
    "forward",
    "loss",
    "accumulate",
    "all_reduce",
    "optimizer",
    "batch_norm_statistics",
    "ema",
    "select_finite",
    "metrics",
}
PLACEMENT = place(16, 2, devices=2, accumulation_steps=2)


TASK = classification(10, label_smoothing=0.1)


def linear(params, stats, images):
    """A network that is compiled at once: the mean of each channel, normalised and weighted."""
    x = jnp.mean(images, (1, 2)) - stats["norm"]["mean"][None]
    return jnp.sum(x[:, :, None] * params[None], 1)


def linear_in_training(params, stats, images, key):
    """Normalised by the examples themselves."""
    x = jnp.mean(images, (1, 2))
    own = {"norm": {"mean": jnp.mean(x, 0), "var": jnp.var(x, 0)}}
    return linear(params, own, images), own


@pytest.fixture
def metadata_in_keys():
    """What XLA has compiled is kept without regard to names, unless it is told to heed them."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


def compiled(step, *args):
    return jax.jit(step).lower(*args).compile().as_text()


def phases_of(program: str) -> set[str]:
    """The parts of the operations' names; of a gradient's too, "transpose(jvp(forward))"."""
    names = re.findall(r'op_name="([^"]*)"', program)
    return {part for name in names for part in re.split(r"[/()]", name)}


def batch(placement):
    slots = (placement.accumulation_steps, placement.devices * placement.lanes, 2)
    images = np.zeros((*slots, 4, 4, 3), np.uint8)
    return {"image": images, "label": np.zeros(slots, np.int32)}


PARAMS, STATS = (
    np.ones((3, 10), np.float32),
    {"norm": {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}},
)
PREPROCESS = functools.partial(normalize, mean=(0.5,), std=(0.5,), dtype=jnp.float32)


def test_the_compiled_step_names_its_phases(metadata_in_keys):
    optimizer = optax.with_extra_args_support(optax.sgd(0.1, momentum=0.9))
    zero = jnp.zeros((), jnp.int32)
    averaged = Averaged(PARAMS, STATS)
    state = TrainState(zero, PARAMS, STATS, optimizer.init(PARAMS), zero, averaged)
    worker = functools.partial(
        worker_loss, network=linear_in_training, preprocess=PREPROCESS, loss=TASK.loss
    )
    step = functools.partial(
        train_step,
        worker=worker,
        reductions=TASK.reductions,
        optimizer=optimizer,
        placement=PLACEMENT,
        of_step=jax.tree.map(lambda _: True, STATS),
        total_variance=True,
    )
    on_devices = jax.device_put(batch(PLACEMENT), PLACEMENT.batch_sharding)
    numbers = Numbers(np.uint32(0), task=TASK.numbers, ema_decay=0.99)
    assert phases_of(compiled(step, state, on_devices, numbers)) >= PHASES


def test_the_compiled_evaluation_names_its_phases(metadata_in_keys):
    placement = place(16, 2, devices=2)
    step = functools.partial(
        eval_step,
        network=linear,
        preprocess=PREPROCESS,
        evaluate=TASK.evaluate,
        placement=placement,
    )
    rows = batch(placement)
    rows["mask"] = np.ones(rows["label"].shape, bool)
    on_devices = jax.device_put(rows, placement.batch_sharding)
    program = compiled(step, PARAMS, STATS, on_devices)
    assert phases_of(program) >= {"forward", "metrics", "all_reduce"}


def test_a_convolution_that_is_transposed_keeps_its_phase():
    def convolve(x, w):
        with jax.named_scope("forward"):
            return jax.lax.conv(x, w, (1, 1), "SAME")

    args = jnp.ones((1, 2, 4, 4)), jnp.ones((3, 2, 3, 3))
    text = jax.jit(cpu_forms(convolve)).lower(*args).as_text("hlo", debug_info=True)
    (line,) = [line for line in text.splitlines() if " convolution(" in line]
    assert "forward" in phases_of(line)
