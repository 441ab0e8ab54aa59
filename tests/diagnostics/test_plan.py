"""When a run is looked at, and what it says where that cannot be."""

import pytest
from worker_loop import small_run

from lbsgd.errors import ConfigError
from lbsgd.explain import explain


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"diagnostics.workers.every_steps": 5, "batch_norm.synced_workers": 4},
            r"^diagnostics\.workers compares gradients of single workers, which "
            r"batch_norm\.synced_workers=4 mixes; set that to 1, or .* to 0$",
        ),
        (
            {"diagnostics.workers.every_steps": 5, "worker_batch_size": 16},
            r"^diagnostics\.workers compares k > 1 workers, and batch_size=16 is one of "
            r"worker_batch_size=16; lower that, or ",
        ),
        (
            {"diagnostics.confusion.every_steps": 5, "diagnostics.confusion.batch_size": 1438},
            r"^diagnostics\.confusion\.batch_size=1438 is more than the 1,437 training examples",
        ),
        ({"diagnostics.layers.every_epochs": 1e-4}, r"diagnostics\.layers\.every_epochs=0\.0001 "),
        (
            {"diagnostics.layers.every_epochs": 1.0, "diagnostics.layers.every_steps": 3},
            "say the same thing",
        ),
        ({"diagnostics.workers.window": 0}, r"diagnostics\.workers\.window must be positive"),
        ({"diagnostics.confusion.pairs": 0}, r"diagnostics\.confusion\.pairs must be positive"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(x64, keys, message):
    with pytest.raises(ConfigError, match=message):
        small_run(8, 1, 1, **keys)


def test_a_run_says_what_it_will_measure(x64):
    keys = {"diagnostics.workers.every_steps": 5, "diagnostics.layers.every_steps": 20}
    parts = small_run(8, 1, 1, **keys, **{"diagnostics.confusion.every_examples": 112})
    assert parts.diagnostics == ({5, 10, 15, 20}, {7, 14}, {20})
    (line,) = (line for line in explain(parts) if line.startswith("diagnostics"))
    assert line == (
        "diagnostics: gradient noise scale at 4 updates, gradient confusion of 100 pairs of "
        "minibatches of 128 after 2, norms of each parameter array at 1"
    )
    assert not any(line.startswith("diagnostics") for line in explain(small_run(8, 1, 1)))


def test_diagnostics_are_no_part_of_what_a_run_is(x64):
    on = small_run(8, 1, 1, **{"diagnostics.workers.every_steps": 1, "diagnostics.in_turn": True})
    assert on.identity() == small_run(8, 1, 1).identity()
