"""Checks which layers a run joins, and that it changes nothing but rounding."""

import numpy as np
import pytest

from lbsgd.data.facts import Facts
from lbsgd.models import convolutions
from lbsgd.run import plan
from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.plan import make_plan
from lbsgd.run.worker import joins_layers
from lbsgd.system.devices import precision
from lbsgd.workers.placement import Placement
from lbsgd.workers.topology import Topology


def config_of(**keys):
    config = default_config()
    config.update(
        {
            "batch_size": 64,
            "worker_batch_size": 16,
            "total_steps": 2,
            "accumulation_steps": 1,
            "model": {"name": "resnet50", "width": 0.0625},
            "learning_rate": {"warmup": "none"},
            "data": {"crop": "none", "flip": False},
        }
    )
    config.update_from_flattened_dict(keys)
    return resolve(config)


@pytest.mark.parametrize(
    ("platform", "lanes", "keys", "expected"),
    [
        ("cpu", 1, {}, False),
        ("gpu", 1, {"optimizer.name": "lars"}, False),
        ("tpu", 1, {"optimizer.name": "lars"}, True),
        ("tpu", 2, {}, False),
        ("tpu", 1, {"optimizer.name": "spngd"}, False),
        ("tpu", 1, {"matmul_precision": "high"}, False),
        ("tpu", 1, {"matmul_precision": "default", "dtype": "bfloat16"}, True),
    ],
)
def test_layers_are_joined_by_placement_optimizer_and_precision(platform, lanes, keys, expected):
    config = default_config()
    config.update_from_flattened_dict(keys)
    placement = Placement(4, 16, 1, 4 // lanes, lanes, platform=platform)
    assert joins_layers(config, placement) == expected


def planned(platform="cpu", **keys):
    facts = Facts(640, 64, 10, (16, 16, 3))
    return make_plan(config_of(**keys), facts, Topology(1, platform=platform))


@pytest.mark.parametrize(
    ("platform", "keys", "joined"),
    [
        ("tpu", {"accumulation_steps": 4}, True),
        ("tpu", {}, False),
        ("cpu", {"accumulation_steps": 4}, False),
    ],
    ids=["a worker a chip", "lanes on a chip", "cpu"],
)
def test_the_update_is_traced_with_layers_joined(monkeypatch, platform, keys, joined):
    """By the pooling of a stem: of which other layers, `test_joined_networks` tells."""
    function, calls = convolutions.normalized_pool, []

    def counted(*args):
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(convolutions, "normalized_pool", counted)
    planned(platform, **keys, **{"model.name": "resnet18"}).trace()
    assert bool(calls) == joined


def test_several_runs_at_once_have_each_layer_by_itself():
    """Their weights differ, as those of workers never do."""
    found = planned("tpu", accumulation_steps=4)
    steps = [found.train_step(found.placement, alone=alone) for alone in (True, False)]
    assert [step.keywords["worker"] is found.worker for step in steps] == [False, True]


@pytest.mark.long
def test_updates_are_those_of_layers_by_themselves(monkeypatch):
    """Two updates in float64, whose loss and parameters differ by rounding alone."""
    found, expected = [_losses(monkeypatch, how) for how in (True, False)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=0)


def _losses(monkeypatch, how: bool) -> list[float]:
    """Losses and norms of the gradient of two updates."""
    monkeypatch.setattr(plan, "joins_layers", lambda *_: how)
    config = config_of(
        **{
            "dtype": "float64",
            "devices": 1,
            "accumulation_steps": 2,
            "data.source": "synthetic",
            "data.image_size": 16,
            "data.synthetic_classes": 10,
            "data.synthetic_examples": 128,
            "data.synthetic_validation_examples": 8,
            "model.zero_init_residual": False,
        }
    )
    parts = build(config)
    state, found = parts.program.start(), []
    step = parts.program.compile_train_step()
    for update, batch in enumerate(parts.feed.train_batches().between(0, 2)):
        with precision("float64"):
            state, metrics = step(state, batch, parts.program.numbers.at(update))
        found += [float(metrics[name]) for name in ("train_loss", "gradient_norm")]
    return found
