"""Tests which updates are made in one call."""

import itertools

import pytest
from tiny_run import tiny_config

from lbsgd.experiments.together import check_seeds
from lbsgd.run.build import build
from lbsgd.run.calls import Call, calls_between, explain_calls, programs_between
from lbsgd.run.explain import explain
from lbsgd.run.program import CompiledSteps
from lbsgd.system.errors import ConfigError

KEYS = {
    "total_steps": 60,
    "evaluation.every_steps": 17,
    "checkpoint.every_steps": 20,
    "batch_growth.sizes": (128, 64),
    "batch_growth.at_steps": (9, 12),
    "data.augment": "progressive_resizing",
    "data.augment_options": {"end_epoch": 2, "multiple": 2},
    "diagnostics.workers.every_steps": 23,
    "diagnostics.confusion.every_steps": 41,
    "diagnostics.confusion.batch_size": 64,
    "diagnostics.layers.every_steps": 29,
}


def plan_of(updates_per_call: int, **keys):
    return build(tiny_config(**{**KEYS, "updates_per_call": updates_per_call, **keys})).plan


def may_be_together(plan, first: int, count: int) -> bool:
    """Asks of each update by itself, as the loop does."""
    inside = range(first + 1, first + count)
    measured = plan.measurements
    due = plan.evaluate_after | plan.save_after | measured.confusion
    looked_at = measured.workers | measured.layers
    sizes = {
        (plan.timeline.batch_size(t), plan.image_shape_of(t)) for t in range(first, first + count)
    }
    return (
        not due.intersection(inside)
        and not looked_at.intersection(range(first + 1, first + count + 1))
        and len(sizes) == 1
    )


@pytest.mark.parametrize("updates_per_call", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("start", [0, 7, 59, 60])
def test_calls_hold_as_many_updates_as_may_be_made_together(updates_per_call, start):
    plan = plan_of(updates_per_call)
    calls = list(calls_between(plan, start, 60))
    assert list(itertools.chain.from_iterable(range(c.first, c.done) for c in calls)) == list(
        range(start, 60)
    )
    assert {call.updates for call in calls} <= {1, updates_per_call}
    for call in calls:
        if call.updates > 1:
            assert may_be_together(plan, *call)
        elif call.first + updates_per_call <= 60 and updates_per_call > 1:
            assert not may_be_together(plan, call.first, updates_per_call)


def test_each_kind_of_call_is_compiled_once_in_the_order_of_need():
    plan = plan_of(3)
    kinds = [
        (plan.placement_of(call.first), plan.image_shape_of(call.first), call.updates)
        for call in calls_between(plan, 5, 60)
    ]
    assert programs_between(plan, 5, 60) == list(dict.fromkeys(kinds))


def test_only_calls_that_there_are_are_compiled(monkeypatch):
    run = build(tiny_config(updates_per_call=4, **{"evaluation.every_steps": 0}))
    steps = CompiledSteps(run.program, 0)  # saved after 4, 8 and 12 updates
    assert [count for _, _, count in steps._steps] == [4]
    assert steps(*Call(8, 4)) is steps(0, 4)
    steps.close()


def test_the_plan_tells_what_comes_of_it():
    assert explain_calls(plan_of(1)) == []
    (line,) = (line for line in explain(plan_of(3)) if line.startswith("calls"))
    together = sum(call.updates for call in calls_between(plan_of(3), 0, 60) if call.updates > 1)
    assert line == (
        f"calls: {together} updates in calls of 3; {60 - together} before evaluations and the like "
        "are calls of one"
    )
    assert explain_calls(plan_of(100))[0].startswith("calls: none of 100 updates, for evaluations")
    free = {"evaluation.every_steps": 0, "checkpoint.every_steps": 0}
    (whole,) = explain_calls(build(tiny_config(updates_per_call=4, **free)).plan)
    assert whole == "calls: 12 updates in calls of 4"


def test_runs_at_once_make_single_calls():
    with pytest.raises(ConfigError, match="updates_per_call=3 is for one run at a time; set seeds"):
        check_seeds(tiny_config(updates_per_call=3))
