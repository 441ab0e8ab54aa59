"""Runs whose optimizer is optax's: they train, resume, and lie on devices as any run."""

import json

import numpy as np
import pytest
from tiny_run import final_state, tiny_config

from lbsgd import train

LION = {
    "optimizer.name": "optax:lion",
    "optimizer.options": {"b1": 0.9, "b2": 0.95},
    "optimizer.weight_decay": 0.01,
    "learning_rate.reference_learning_rate": 0.01,
    "learning_rate.scaling": "none",
}
MUON = {**LION, "optimizer.name": "optax.contrib:muon", "optimizer.options": {"ns_steps": 3}}


@pytest.mark.long
def test_lion_trains_digits(tmp_path):
    rarely = {"evaluation.every_steps": 100, "checkpoint.every_steps": 100}
    train.run(tiny_config(total_steps=300, devices=1, **rarely, **LION), tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    errors = [line["val_error"] for line in lines if "val_error" in line]
    # By chance it is 90.
    assert errors[-1] < 30


@pytest.mark.long
@pytest.mark.parametrize("keys", [LION, MUON], ids=["lion", "muon"])
def test_it_goes_on_elsewhere_as_if_it_had_not_stopped(x64, tmp_path, keys):
    """On one device; and stopped after 7 updates, then on five, with idle slots."""
    float64 = {**keys, "dtype": "float64"}
    train.run(tiny_config(devices=1, **float64), tmp_path / "one")
    train.run(
        tiny_config(devices=1, **float64), tmp_path / "five", should_stop=lambda done: done == 7
    )
    train.run(tiny_config(devices=5, **float64), tmp_path / "five")
    expected = final_state(tiny_config(devices=1, **float64), tmp_path / "one")
    found = final_state(tiny_config(devices=5, **float64), tmp_path / "five")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
