"""Runs whose curvature is of labels sampled from the model, beside those of the labels given."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.models.normalization import BatchNorm
from lbsgd.optim.stale import Intervals
from lbsgd.run.build import build, plan_run
from lbsgd.run.config import default_config, resolve
from lbsgd.run.explain import explain
from lbsgd.step import fisher
from lbsgd.system.errors import ConfigError

UPDATES = 12


class Tiny(nn.Module):
    """A convolution, a norm and a classifier: compiled in a second."""

    num_classes: int

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3), (2, 2))(x)
        x = nn.relu(BatchNorm()(x, train=train))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def squared(logits, labels):
    """A loss that is no distribution's."""
    return jnp.sum((logits - jax.nn.one_hot(labels, logits.shape[-1])) ** 2, axis=-1)


def config_of(**keys):
    config = default_config()
    config.update(
        {
            "batch_size": 256,
            "worker_batch_size": 64,
            "total_steps": UPDATES,
            "devices": 1,
            "label_smoothing": 0.1,
            "model": {"name": f"{__name__}:Tiny"},
            "optimizer": {"name": "spngd", "damping": 1e-3},
            "learning_rate": {
                "reference_learning_rate": 0.01,
                "scaling": "none",
                "warmup": "none",
                "decay": "none",
            },
        }
    )
    config.update_from_flattened_dict(keys)
    return resolve(config)


def train(**keys):
    """The metrics of each update, and the state after the first and at the end."""
    run = build(config_of(**keys))
    step, numbers, state = (
        run.program.compile_train_step(),
        run.program.numbers,
        run.program.start(),
    )
    metrics, states = [], []
    for update, batch in enumerate(run.feed.train_batches().between(0, UPDATES)):
        state, values = step(state, batch, numbers.at(update))
        metrics.append(jax.device_get(values))
        states.append(jax.device_get((state.params, state.batch_stats)))
    return metrics, states[0], states[-1]


@pytest.mark.long
def test_they_train_as_quickly_and_their_first_update_differs_in_the_curvature_alone():
    of_labels, of_samples = train(), train(**{"optimizer.fisher": "1mc"})
    for name in ("train_loss", "train_error", "gradient_norm"):
        np.testing.assert_allclose(of_samples[0][0][name], of_labels[0][0][name], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, of_samples[1][1], of_labels[1][1])  # of norms
    change = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), of_samples[1][0], of_labels[1][0])
    assert min(jax.tree.leaves(change)) > 1e-6
    for metrics, *_ in (of_labels, of_samples):
        assert metrics[-1]["train_loss"] < 0.7 * metrics[0]["train_loss"]
        assert metrics[-1]["skipped"] == 0


@pytest.mark.long
def test_labels_are_sampled_only_where_a_statistic_is_due(monkeypatch):
    """There is no pass for them between refreshes."""
    passes, sampled = [], fisher._sampled

    def counted(*args, **keywords):
        jax.debug.callback(lambda: passes.append(None))
        return sampled(*args, **keywords)

    monkeypatch.setattr(fisher, "_sampled", counted)
    keys = {"optimizer.fisher": "1mc", "optimizer.stale_threshold": 0.9}
    run = build(config_of(**keys))
    step, state = run.program.compile_train_step(), run.program.start()
    made, expected = [], []
    for update, batch in enumerate(run.feed.train_batches().between(0, UPDATES)):
        kept = jax.tree.leaves(state.curvature, is_leaf=lambda x: isinstance(x, Intervals))
        due = np.concatenate([x.due_at for x in kept if isinstance(x, Intervals)]) <= update
        state, metrics = step(state, batch, run.program.numbers.at(update))
        jax.block_until_ready(state)
        jax.effects_barrier()
        made.append(bool(passes))
        expected.append(bool(due.any()))
        told = metrics["statistics_refreshed_percent"]
        assert told == pytest.approx(100 * due.mean(), rel=1e-6)
        passes.clear()
    assert made == expected
    assert 2 < sum(made) < UPDATES


@pytest.mark.long
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_they_train_the_same_in_every_place(x64, normalization):
    """Stale statistics among them, and of group norm a diagonal."""
    keys = {
        "dtype": "float64",
        "worker_batch_size": 32,
        "model.name": "cifar_resnet8",
        "model.width": 0.25,
        "model.normalization": normalization,
        "optimizer.fisher": "1mc",
        "optimizer.stale_threshold": 0.3,
    }
    (alone, _, expected), (metrics, _, found) = (
        train(**keys, devices=devices, accumulation_steps=steps)
        for devices, steps in ((1, 1), (3, 2))
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    jax.tree.map(close, (metrics, found), (alone, expected))


def test_the_plan_says_whose_labels_they_are():
    given = {"data.source": "synthetic"}
    said = {
        fisher: " ".join(explain(plan_run(config_of(**given, **{"optimizer.fisher": fisher}))))
        for fisher in ("empirical", "1mc")
    }
    assert "empirical Fisher, damping" in said["empirical"]
    assert "Fisher of sampled labels, damping" in said["1mc"]


def test_a_loss_that_says_no_distribution_has_no_labels_to_sample():
    config = config_of(
        **{"optimizer.fisher": "1mc", "task.loss": f"{__name__}:squared", "label_smoothing": 0.0}
    )
    with pytest.raises(ConfigError, match=r"optimizer.fisher='1mc' samples labels.*'empirical'"):
        plan_run(config)
