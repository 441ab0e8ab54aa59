"""What signatures say of shapes and types is checked in tests, in every room that computes."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from lbsgd.diagnostics import noise_scale, workers_gradient
from lbsgd.models.normalization import moments
from lbsgd.optim.layerwise import scale_by_trust_ratio
from lbsgd.optim.momentum import MomentumState, rate_outside_momentum
from lbsgd.schedule import functions
from lbsgd.step.pixels import erase, mix
from lbsgd.step.reduction import sum_of_workers
from lbsgd.tasks.losses import cross_entropy, wrong_at
from lbsgd.workers.collectives.buckets import in_buckets
from lbsgd.workers.collectives.scaling import float16_scale
from lbsgd.workers.placement import place

LOGITS, IMAGES = jnp.zeros((4, 10)), jnp.zeros((4, 2, 2, 3))
LABELS, BOXES = jnp.zeros(4, jnp.int32), jnp.zeros((4, 4), jnp.int32)


def momentum(buffer):
    gradient = {"w": jnp.ones(3)}
    optimizer = rate_outside_momentum()
    return optimizer.update(gradient, MomentumState({"w": buffer}), momentum=0.9)


def trust_ratio(params):
    optimizer = scale_by_trust_ratio(rate_outside_momentum(), {"w": True})
    gradient, numbers = {"w": jnp.ones(3)}, {"momentum": 0.0, "trust_coefficient": 0.1}
    return optimizer.update(gradient, optimizer.init(gradient), {"w": params}, **numbers)


# Where numpy's broadcasting would make something of it, or not complain until much later.
WRONG = {
    "step: labels of other examples": lambda: cross_entropy(LOGITS, LABELS[:1]),
    "step: one-hot labels": lambda: wrong_at(1, LOGITS, jnp.zeros((4, 10), jnp.int32)),
    "step: labels of floats": lambda: cross_entropy(LOGITS, jnp.zeros(4)),
    "step: boxes of other images": lambda: erase(IMAGES, BOXES[:1]),
    "step: one share for all": lambda: mix(IMAGES, jnp.ones(1)),
    "step: a mask of one lane": lambda: sum_of_workers(LOGITS, jnp.ones(1, bool)),
    "workers: a leaf of integers": lambda: in_buckets(lambda x: x, [LABELS], 8, 1),
    "workers: a bucket of two axes": lambda: float16_scale(LOGITS, "device", 1),
    "workers: a step for each lane": lambda: place(8, 2, devices=2).holds_worker(LABELS),
    "optim: a buffer of one number": lambda: momentum(jnp.zeros(1)),
    "optim: parameters of another layer": lambda: trust_ratio(jnp.ones((3, 1))),
    "models: features of integers": lambda: moments(LABELS[:, None]),
    "schedule: a rate that is text": lambda: functions.constant("0.1"),
    "diagnostics: a product of two arrays each": lambda: noise_scale.estimate(LOGITS, 1, 1.0, 2),
    "diagnostics: lanes of two axes": lambda: workers_gradient._lanes_at_once(
        lambda row: row["x"], {"x": LOGITS}, jnp.ones((4, 1), bool)
    ),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_shape_or_type_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_shapes_are_those_within_vmap_and_jit():
    """One example less a map: what is traced has the shapes that the signature says."""
    stacked = jnp.zeros((2, 4, 10)), jnp.zeros((2, 4), jnp.int32)
    assert jax.jit(jax.vmap(cross_entropy))(*stacked).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        jax.jit(cross_entropy)(*stacked)


def test_wrong_shapes_are_refused_in_float64_too(x64):
    assert cross_entropy(jnp.zeros((4, 10), jnp.float64), LABELS).dtype == jnp.float64
    with pytest.raises(TypeCheckError):
        cross_entropy(jnp.zeros((4, 10), jnp.float64), LABELS[:1])


@pytest.mark.long
def test_training_has_no_need_of_beartype():
    """Outside of tests nothing is checked, and beartype need not be there."""
    text = (
        "import sys; sys.modules['beartype'] = None\n"
        "import lbsgd.step.train_step, lbsgd.diagnostics.workers_gradient, lbsgd.models\n"
        "import lbsgd.workers.collectives.allreduce, lbsgd.optim.chain\n"
        "import jax.numpy as jnp\n"
        "from lbsgd.tasks.losses import cross_entropy\n"
        "print(cross_entropy(jnp.zeros((1, 10)), jnp.zeros(1)[:, None].astype(int)[0]).shape)\n"
    )
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "(1,)\n"), run.stderr


def test_numpy_arrays_are_leaves_of_an_optimizer():
    optimizer = rate_outside_momentum()
    state = MomentumState({"w": np.ones(3)})
    result, _ = optimizer.update({"w": np.ones(3)}, state, momentum=0.5)
    np.testing.assert_array_equal(result["w"], [1.5] * 3)
