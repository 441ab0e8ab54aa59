"""Runs with running mixup: the same in every place, stopped and resumed, and what does not fit."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_run import UPDATES, final_state, tiny_config

from lbsgd import train
from lbsgd.models.normalization import BatchNorm
from lbsgd.run.build import build
from lbsgd.run.record.metrics import read_metrics
from lbsgd.system.errors import ConfigError

# With eight workers there are idle slots on three devices.
MIXED = {
    "model.name": "test_mixed_minibatches:Normalized",
    "model.width": 1.0,
    "dtype": "float64",
    "batch_size": 64,
    "worker_batch_size": 8,
    "label_smoothing": 0.1,
    "data.running_mixup": 0.4,
    "data.erasing": 0.5,
    "evaluation.every_steps": UPDATES,
    "checkpoint.every_steps": UPDATES,
}
PLACES = [(d, a) for d in (1, 2, 3) for a in (1, 2) if (d, a) != (1, 1)]
mixed_config = functools.partial(tiny_config, **MIXED)


class Normalized(nn.Module):
    """Compiled in no time."""

    num_classes: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        types = {"dtype": self.param_dtype, "param_dtype": self.param_dtype}
        x = nn.Dense(8, **types)(x.reshape(len(x), -1))
        x = nn.relu(BatchNorm(**types)(x[:, None, None], train=train))
        return nn.Dense(self.num_classes, **types)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    """The last state of the run on one device, which was not stopped."""
    with jax.enable_x64():
        config, workdir = mixed_config(devices=1), tmp_path_factory.mktemp("one")
        assert train.run(config, workdir).complete
        return final_state(config, workdir)


def assert_close(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("stop", [5, 1])
def test_a_run_that_is_stopped_resumes_bitwise(x64, on_one_device, tmp_path, stop):
    config = mixed_config(devices=1)
    assert not train.run(config, tmp_path, should_stop=lambda done: done == stop).complete
    assert train.run(config, tmp_path).complete
    found = final_state(config, tmp_path)
    assert found[".mixed.images"].shape == (8, 8, 8, 8, 1)
    assert found[".mixed.targets"].shape == (8, 8, 10)
    np.testing.assert_allclose(found[".mixed.targets"].sum(axis=-1), 1, rtol=1e-12)
    for name, value in on_one_device.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("devices", "steps"),
    [pytest.param(*p, marks=[] if p == (3, 2) else pytest.mark.long) for p in PLACES],
)
def test_a_run_that_goes_on_elsewhere_is_the_same(x64, on_one_device, tmp_path, devices, steps):
    """From one device to others, with other slots."""
    there = mixed_config(devices=devices, accumulation_steps=steps)
    train.run(mixed_config(devices=1), tmp_path, should_stop=lambda done: done == 5)
    assert train.run(there, tmp_path).complete
    assert_close(final_state(there, tmp_path), on_one_device)


@pytest.mark.long
@pytest.mark.parametrize(("devices", "steps"), PLACES)
def test_a_run_is_the_same_in_every_place(x64, on_one_device, tmp_path, devices, steps):
    config = mixed_config(devices=devices, accumulation_steps=steps)
    assert train.run(config, tmp_path).complete
    assert_close(final_state(config, tmp_path), on_one_device)


NATURAL = {
    "optimizer.name": "spngd",
    "optimizer.damping": 1e-2,
    "optimizer.fisher_share": 0.5,
    "optimizer.stale_threshold": 0.3,
    "learning_rate.reference_learning_rate": 0.01,
}


@pytest.mark.long
def test_a_natural_gradient_is_of_mixed_minibatches_too(x64, tmp_path):
    """Stopped on one device, and resumed on three, in two steps."""
    here = mixed_config(devices=1, **NATURAL)
    there = mixed_config(devices=3, accumulation_steps=2, **NATURAL)
    assert train.run(here, tmp_path / "whole").complete
    train.run(here, tmp_path / "parts", should_stop=lambda done: done == 5)
    assert train.run(there, tmp_path / "parts").complete
    found = final_state(there, tmp_path / "parts")
    intervals = [value.max() for name, value in found.items() if name.endswith("intervals.last")]
    assert max(intervals) > 1  # else nothing was stale
    assert_close(found, final_state(here, tmp_path / "whole"))


@pytest.mark.long
def test_the_noise_scale_is_of_the_gradient_that_the_update_has(x64, tmp_path):
    assert train.run(mixed_config(**{"diagnostics.workers.every_steps": 1}), tmp_path).complete
    lines = read_metrics(tmp_path / "metrics.jsonl")
    norms = {line["step"]: line["gradient_norm"] for line in lines if "gradient_norm" in line}
    found = [line for line in lines if "gradient_square" in line]
    assert len(found) == UPDATES
    for line in found:
        large = line["gradient_square"] + line["gradient_covariance_trace"] / 64
        assert large == pytest.approx(norms[line["step"]] ** 2, rel=1e-9)


def test_evaluation_and_precise_batch_norm_do_not_know_of_it():
    """Their programs are those of a run without; the state without has nothing more."""
    texts = []
    for alpha in (0.0, 0.4):
        plan = build(tiny_config(**{"data.running_mixup": alpha})).plan
        batch = plan.batch_shapes(plan.placement)
        batch.pop("running_share", None)
        given = plan.state_shapes.params, plan.state_shapes.batch_stats
        moments = jax.jit(plan.moments_step()).lower(*given, plan.number_shapes(), batch)
        mask = jax.ShapeDtypeStruct(batch["label"].shape, bool)
        evaluation = jax.jit(plan.eval_step()).lower(*given, batch | {"mask": mask})
        texts.append((moments.as_text(), evaluation.as_text()))
        assert (plan.state_shapes.mixed is None) == (not alpha)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"data.mixup": 0.2}, "set the one or the others to 0"),
        ({"data.cutmix": 1.0}, "set the one or the others to 0"),
        ({"batch_growth.sizes": (128,), "batch_growth.at_steps": (4,)}, "the batch grows; leave"),
        (
            {
                "data.augment": "progressive_resizing",
                "data.augment_options": {"end_epoch": 0.3},
                "model.name": "cifar_resnet8",
            },
            "data.augment makes images of .* leave out either",
        ),
        ({"task.loss": "optax:softmax_cross_entropy_with_integer_labels"}, "takes labels; set"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, keys, says):
    with pytest.raises(ConfigError, match=says):
        train.run(mixed_config(**{"dtype": "float32", **keys}), tmp_path)
    assert list(tmp_path.iterdir()) == []
