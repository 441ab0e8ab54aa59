"""benchmarks/scaling.py: every place takes its turns, and the efficiency is of pairs."""

import json
import os

import pytest
import scaling

TINY = ("cifar_resnet8", 8, 8, 4, "float32")
MACHINE = {"git_commit": "0123456789abcdef", "backend": "cpu", "processor": "Z80", "cpus": 2}
MACHINE |= {"date": "2026-01-02", "packages": {"jax": "0.11.2", "flax": None}}


def test_efficiency_is_of_neighbours_in_time(tmp_path, monkeypatch):
    """Compares two devices with twice one of the same round, not by medians."""
    names = [place.name for place in (scaling.ONE, *scaling.OTHERS)]
    weak = dict(zip(names, ([100.0, 50.0, 200.0], [100.0, 100.0, 100.0], [150.0, 75.0, 300.0])))
    strong = {**weak, names[1]: [200.0, 100.0, 400.0]}
    result = {"case": TINY, "n": 3, "rates": {"weak": weak, "strong": strong}, "machine": MACHINE}
    monkeypatch.setattr(scaling, "RESULTS", tmp_path / "scaling.json")
    scaling.RESULTS.write_text(json.dumps(result))
    lines = scaling.table().splitlines()
    assert lines[2:8] == [
        "| weak | 1 process x 1 device | 8 | 100 |  |",
        "| weak | 2 processes x 1 device | 16 | 100 | 0.50 (0.25 to 1.00) |",
        "| weak | 1 process x 2 devices | 16 | 150 | 0.75 (0.75 to 0.75) |",
        "| strong | 1 process x 1 device | 8 | 100 |  |",
        "| strong | 2 processes x 1 device | 8 | 200 | 1.00 (1.00 to 1.00) |",
        "| strong | 1 process x 2 devices | 8 | 150 | 0.75 (0.75 to 0.75) |",
    ]
    assert lines[-1] == "Z80, 2 CPU cores; jax 0.11.2; commit 0123456789; 2026-01-02; n=3."


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_every_place_is_measured_in_every_round():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    rates = scaling.measure(TINY, rounds=2, seconds=0.01)
    for scaling_ in ("weak", "strong"):
        assert {place: len(x) for place, x in rates[scaling_].items()} == {
            place.name: 2 for place in (scaling.ONE, *scaling.OTHERS)
        }
        assert min(min(x) for x in rates[scaling_].values()) > 0
