"""Which layers a run joins, and that it changes nothing but rounding."""

import numpy as np
import pytest

from lbsgd.data.facts import Facts
from lbsgd.models import convolutions
from lbsgd.run.config import default_config, resolve
from lbsgd.run.plan import make_plan
from lbsgd.run.worker import joins_layers
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
    ("optimizer", "platform", "lanes", "expected"),
    [
        ("sgd", "cpu", 1, False),
        ("lars", "gpu", 1, False),
        ("lars", "tpu", 1, True),
        ("sgd", "tpu", 2, False),
        ("spngd", "tpu", 1, False),
    ],
)
def test_layers_are_joined_by_optimizer_and_placement(optimizer, platform, lanes, expected):
    config = default_config()
    config.optimizer.name = optimizer
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


@pytest.mark.long
def test_updates_are_those_of_layers_by_themselves(monkeypatch):
    """Two updates in float64, whose loss and parameters differ by rounding alone."""
    found, expected = [_losses(monkeypatch, how) for how in (True, False)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=0)


def _losses(monkeypatch, how: bool) -> list[float]:
    """Losses and norms of the gradient of two updates."""
    from lbsgd.run import plan as module
    from lbsgd.run.build import build
    from lbsgd.system.devices import precision

    monkeypatch.setattr(module, "joins_layers", lambda *_: how)
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
