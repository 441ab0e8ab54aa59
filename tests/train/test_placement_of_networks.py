"""Other people's networks too are trained alike wherever the workers lie: dropout, statistics."""

import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest

from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve

UPDATES = 4
WORKERS = 6
PLACES = [(d, a) for d in (1, 2, 3, 5) for a in (1, 2) if (d, a) != (1, 1)]
# Whose dropout, Flax's batch norm, and lbsgd's beside it.
NETWORKS = [
    ("GroupNormDropout", "within"),
    ("StockBatchNorm", "within"),
    ("Mixed", "within"),
    ("Mixed", "total"),
]
# On two devices; `make test-all` has the whole table.
QUICK = [(NETWORKS[0], (2, 1))]


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(pathlib.Path(__file__).parents[1] / "models")])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def trained(name: str, devices: int, steps: int, **keys: Any) -> dict[str, np.ndarray]:
    """The metrics of each update and the final state, by name."""
    config = default_config()
    config.update(
        {
            "dtype": "float64",
            "batch_size": 4 * WORKERS,
            "worker_batch_size": 4,
            "total_steps": UPDATES,
            "devices": devices,
            "accumulation_steps": steps,
        }
    )
    config.model.name = f"their_networks:{name}"
    config.update_from_flattened_dict(keys)
    with jax.enable_x64(True):
        run = build(resolve(config))
        step, state = run.program.compile_train_step(), run.program.start()
        metrics = []
        for t, batch in enumerate(run.feed.train_batches().between(0, UPDATES)):
            state, values = step(state, batch, run.program.numbers.at(t))
            metrics.append(jax.device_get(values))
        found = jax.device_get((metrics, state))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def on_one_device():
    return {}


@pytest.mark.parametrize(
    ("name", "variance", "devices", "steps"),
    [
        pytest.param(*case, *place, marks=[] if (case, place) in QUICK else pytest.mark.long)
        for case in NETWORKS
        for place in PLACES
    ],
)
def test_a_network_is_trained_alike_in_every_place(on_one_device, name, variance, devices, steps):
    keys = {"batch_norm.running_variance": variance}
    if (name, variance) not in on_one_device:
        on_one_device[name, variance] = trained(name, 1, 1, **keys)
    expected, found = on_one_device[name, variance], trained(name, devices, steps, **keys)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-9, atol=1e-9, err_msg=path)
