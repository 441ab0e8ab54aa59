"""The phases of a step are named, in what is given to the compiler and in what it makes of it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lbsgd.schedule.functions import constant
from lbsgd.step.evaluation import eval_step
from lbsgd.step.loops import canonical_convolutions
from lbsgd.step.pixels import normalize
from lbsgd.step.train_step import TrainState, train_step
from lbsgd.step.worker import worker_loss
from lbsgd.workers.placement import place

PHASES = {
    "augment",
    "forward",
    "loss",
    "accumulate",
    "all_reduce",
    "optimizer",
    "batch_norm_statistics",
    "select_finite",
    "metrics",
}
PLACEMENT = place(16, 2, devices=2, accumulation_steps=2)


class Linear:
    """A network that is compiled at once: the mean of each channel, normalised and weighted."""

    def apply(self, variables, images, *, train, mutable=()):
        x = jnp.mean(images, (1, 2))
        own = {"norm": {"mean": jnp.mean(x, 0), "var": jnp.var(x, 0)}}
        stats = own if train else variables["batch_stats"]
        x = x - stats["norm"]["mean"][None]
        logits = jnp.sum(x[:, :, None] * variables["params"][None], 1)
        return (logits, {"batch_stats": own}) if train else logits


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
    state = TrainState(zero, PARAMS, STATS, optimizer.init(PARAMS), zero)
    worker = functools.partial(
        worker_loss, model=Linear(), preprocess=PREPROCESS, label_smoothing=0.1
    )
    step = functools.partial(
        train_step,
        worker=worker,
        optimizer=optimizer,
        schedules={"learning_rate": constant(0.1)},
        placement=PLACEMENT,
        batch_norm_momentum=0.9,
        total_variance=True,
    )
    assert phases_of(compiled(step, state, batch(PLACEMENT))) >= PHASES


def test_the_compiled_evaluation_names_its_phases(metadata_in_keys):
    placement = place(16, 2, devices=2)
    step = functools.partial(eval_step, model=Linear(), preprocess=PREPROCESS, placement=placement)
    rows = batch(placement)
    rows["mask"] = np.ones(rows["label"].shape, bool)
    program = compiled(step, PARAMS, STATS, rows)
    assert phases_of(program) >= {"forward", "metrics", "all_reduce"}


def test_a_convolution_that_is_transposed_keeps_its_phase():
    def convolve(x, w):
        with jax.named_scope("forward"):
            return jax.lax.conv(x, w, (1, 1), "SAME")

    args = jnp.ones((1, 2, 4, 4)), jnp.ones((3, 2, 3, 3))
    text = jax.jit(canonical_convolutions(convolve)).lower(*args).as_text("hlo", debug_info=True)
    (line,) = [line for line in text.splitlines() if " convolution(" in line]
    assert "forward" in phases_of(line)
