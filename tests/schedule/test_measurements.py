"""When a run is looked at, and what it says where that cannot be."""

import pytest
from worker_loop import small_run

from lbsgd.run.explain import explain
from lbsgd.system.errors import ConfigError


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
            r"^diagnostics\.workers compares k > 1 workers, and no update has more than one of "
            r"worker_batch_size=16; lower that, or ",
        ),
        (
            # It would grow, but past the end of the run.
            {
                "diagnostics.workers.every_steps": 5,
                "worker_batch_size": 16,
                "batch_growth.sizes": (32,),
                "batch_growth.at_steps": (20,),
            },
            "no update has more than one of worker_batch_size=16",
        ),
        (
            {"diagnostics.confusion.every_steps": 5, "diagnostics.confusion.batch_size": 1438},
            r"^diagnostics\.confusion\.batch_size=1438 is more than the 1,437 training examples",
        ),
        ({"diagnostics.layers.every_epochs": 1e-4}, r"diagnostics\.layers\.every_epochs=0\.0001: "),
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


def test_a_batch_that_grows_is_looked_at_from_where_it_has_several_workers(x64):
    """Update 8 is the first of two workers, in the count of those done: of index 7."""
    keys = {"worker_batch_size": 16, "diagnostics.workers.every_steps": 2}
    grown = small_run(
        8, 1, 1, **keys, **{"batch_growth.sizes": (32,), "batch_growth.at_steps": (7,)}
    )
    assert grown.plan.measurements.workers == {8, 10, 12, 14, 16, 18, 20}
    later = {"batch_growth.sizes": (32, 48), "batch_growth.at_steps": (8, 20)}
    assert small_run(8, 1, 1, **keys, **later).plan.measurements.workers == {10, 12, 14, 16, 18, 20}


def test_a_run_says_what_it_will_measure(x64):
    keys = {"diagnostics.workers.every_steps": 5, "diagnostics.layers.every_steps": 20}
    parts = small_run(8, 1, 1, **keys, **{"diagnostics.confusion.every_examples": 112})
    assert parts.plan.measurements == ({5, 10, 15, 20}, {7, 14}, {20})
    (line,) = (line for line in explain(parts.plan) if line.startswith("diagnostics"))
    assert line == (
        "diagnostics: gradient noise scale at 4 updates, gradient confusion of 100 pairs of "
        "minibatches of 128 after 2 updates, norms of each parameter array at 1 update"
    )
    assert not any(line.startswith("diagnostics") for line in explain(small_run(8, 1, 1).plan))


def test_diagnostics_are_no_part_of_what_a_run_is(x64):
    on = small_run(8, 1, 1, **{"diagnostics.workers.every_steps": 1, "diagnostics.in_turn": True})
    assert on.plan.identity() == small_run(8, 1, 1).plan.identity()
