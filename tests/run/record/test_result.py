"""The final value and the target, from metrics to the lines that say them."""

import statistics

import pytest

from lbsgd.run.record.result import final_value, say_final, say_target
from lbsgd.run.target import find_target
from lbsgd.schedule.timeline import Timeline
from lbsgd.tasks.classification import classification

# The digits in minibatches of 256: 5.61 updates an epoch, so that no epoch ends with an update.
DIGITS = Timeline.constant(1437, 256)
TASK = classification(10)


def metrics(errors: dict[int, float]) -> list[dict]:
    """Lines of updates, and of evaluations after those given."""
    lines: list[dict] = [{"step": step, "train_error": 0.0} for step in errors]
    lines += [{"step": step, "val_error": error} for step, error in errors.items()]
    return sorted(lines, key=lambda line: line["step"])


@pytest.mark.parametrize("timeline", [DIGITS, Timeline.constant(1000, 10)])
@pytest.mark.parametrize("epochs", [5, 6, 30, 89, 90, 91])
def test_of_one_evaluation_an_epoch_it_is_the_median_of_the_last_five(timeline, epochs):
    """Whichever way the ends of epochs round to updates."""
    scrambled = {m: float(m * 37 % 101) for m in range(1, epochs + 1)}
    lines = metrics({timeline.update_at_epoch(m): error for m, error in scrambled.items()})
    last = [scrambled[m] for m in range(epochs - 4, epochs + 1)]
    assert final_value(lines, timeline, "val_error") == (statistics.median(last), 5, True)


# Updates of 10 an epoch after which there are evaluations, and those that count.
SPACINGS = {
    "twice an epoch": (range(5, 101, 5), range(55, 101, 5)),
    "every second epoch": (range(20, 101, 20), (60, 80, 100)),
    "every fourth": (range(40, 121, 40), (80, 120)),
    "every fourth, with an offset": (range(20, 121, 40), (60, 100)),
    "every fifth": (range(50, 121, 50), (100,)),
    "at the end alone": ((300,), (300,)),
    "at the end of a part of an epoch": ((*range(10, 91, 10), 95), (60, 70, 80, 90, 95)),
    "every update": (range(1, 101), range(51, 101)),
}


@pytest.mark.parametrize("name", SPACINGS)
def test_it_is_over_epochs_whatever_the_spacing(name):
    there, count = SPACINGS[name]
    errors = {step: float(step * 37 % 101) for step in there}
    found = final_value(metrics(errors), Timeline.constant(100, 10), "val_error")
    expected = [errors[step] for step in count]
    assert found == (statistics.median(expected), len(expected), True)


def test_a_batch_that_grows_changes_no_epoch():
    """10 updates an epoch, and from epoch 3 on 2."""
    timeline = Timeline.from_schedule(100, [(0, 10), (3, 50)])
    ends = [10, 20, 30, 32, 34, 36, 38]
    lines = metrics({step: float(step) for step in ends})
    assert final_value(lines, timeline, "val_error") == (34.0, 5, True)


def test_a_run_of_fewer_epochs_has_the_median_of_all():
    lines = metrics({10: 50.0, 20: 30.0, 25: 20.0})
    timeline = Timeline.constant(100, 10)
    assert final_value(lines, timeline, "val_error") == (30.0, 3, False)
    assert final_value([{"step": 1, "train_error": 3.0}], timeline, "val_error") is None


def test_a_metric_that_was_not_finite_is_none_of_them():
    lines = [*metrics({10: 50.0, 20: 30.0}), {"step": 25, "val_error": None, "val_loss": 2.0}]
    assert final_value(lines, Timeline.constant(100, 10), "val_error") == (40.0, 2, False)
    assert final_value(lines, Timeline.constant(100, 10), "val_loss") == (2.0, 1, False)


SAID = {
    "an epoch each": (
        range(10, 101, 10),
        "validation error 80.00% (median of the 5 evaluations in the final 5 epochs; the last "
        "100.00%, top-5 1.00%)",
    ),
    "two": (
        (80, 100),
        "validation error 90.00% (median of the 2 evaluations in the final 5 epochs; the last "
        "100.00%, top-5 1.00%)",
    ),
    "one of several": (
        (20, 60, 100),
        "validation error 80.00% (median of the 2 evaluations in the final 5 epochs; the last "
        "100.00%, top-5 1.00%)",
    ),
    "a single one of the last": (
        (40, 90),
        "validation error 90.00% (the only evaluation in the final 5 epochs; top-5 1.00%)",
    ),
    "one": ((90,), "validation error 90.00% (the only evaluation; top-5 1.00%)"),
    "few epochs": (
        (10, 20, 35),
        "validation error 20.00% (median of all 3 evaluations, in fewer than 5 epochs; the last "
        "35.00%, top-5 1.00%)",
    ),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("top5", [True, False])
def test_the_line_says_of_what_it_is_the_median(name, top5):
    there, line = SAID[name]
    evaluated = [
        {"step": step, "val_error": float(step)} | ({"val_error_top5": 1.0} if top5 else {})
        for step in there
    ]
    if not top5:
        line = line.replace(", top-5 1.00%", "").replace("; top-5 1.00%", "")
    final = final_value(evaluated, Timeline.constant(100, 10), "val_error")
    assert say_final(final, evaluated, TASK if top5 else classification(5)) == line


EVALUATED = [
    {"step": 1, "epoch": 0.5, "val_error": 60.0},
    {"step": 2, "epoch": 1.0, "val_error": 40.0},
    {"step": 3, "epoch": 1.5, "val_error": 45.5},
]


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            ("val_error", 40.0),
            "target reached: val_error of at most 40, after 2 updates = 1 epoch (40)",
        ),
        (
            ("val_accuracy", 45.5),
            "target reached: val_accuracy of at least 45.5, after 2 updates = 1 epoch (60)",
        ),
        (
            ("val_error", 75.0),
            "target reached: val_error of at most 75, after 1 update = 0.5 epochs (60)",
        ),
        (("val_error", 1.5), "target not reached: val_error of at most 1.5 (the best was 40)"),
        (
            ("val_accuracy", 75.9),
            "target not reached: val_accuracy of at least 75.9 (the best was 60)",
        ),
        (
            ("val_loss", 1.0),
            "target not reached: val_loss of at most 1 (there was no evaluation)",
        ),
    ],
)
def test_the_target_is_said_with_the_updates_and_epochs_to_it(target, line):
    assert say_target(find_target(target, TASK), EVALUATED) == line
