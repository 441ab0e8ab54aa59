"""The target that a run ends at: what it may be, and when an evaluation reaches it."""

import pytest
from partial_config import config_with

from lbsgd.run.build import build
from lbsgd.run.config import default_config, resolve
from lbsgd.run.target import Target, find_target
from lbsgd.system.errors import ConfigError
from lbsgd.tasks import Metric, Task
from lbsgd.tasks.classification import classification

TASK = classification(10)

# A target, an evaluation that just reaches it, and one that just does not.
REACHED = {
    ("val_error", 24.1): ({"val_error": 100 * 12_050 / 50_000}, {"val_error": 24.102}),
    ("val_accuracy", 75.9): ({"val_error": 100 * 12_050 / 50_000}, {"val_error": 24.102}),
    ("val_error_top5", 7): ({"val_error_top5": 7.0}, {"val_error_top5": 7.002}),
    ("val_accuracy_top5", 93): ({"val_error_top5": 7.0}, {"val_error_top5": 7.002}),
    ("val_loss", 0.5): ({"val_loss": 0.5}, {"val_loss": 0.5000001}),
}


def target(metric: str, value: float) -> Target:
    found = find_target((metric, value), TASK)
    assert found is not None
    return found


def check_reached(target: Target, just: dict[str, float], not_yet: dict[str, float]) -> None:
    assert target.reached(just)
    assert not target.reached(not_yet)
    assert not target.reached({})  # of an update
    assert not target.reached(dict.fromkeys(just))  # it was not finite
    assert not target.reached({key: float("nan") for key in just})


@pytest.mark.parametrize("stop_at", REACHED)
def test_a_metric_goes_its_own_way(stop_at):
    found = find_target(resolve(config_with(stop_at=stop_at)).stop_at, TASK)
    check_reached(found, *REACHED[stop_at])


@pytest.mark.parametrize("stop_at", REACHED)
def test_a_metric_of_averaged_weights_is_one_of_its_own(stop_at):
    (metric, value), (just, not_yet) = stop_at, REACHED[stop_at]
    found = find_target((f"{metric}_ema", value), TASK, averaged=True)
    assert not found.reached(just)
    ended = [{f"{key}_ema": x for key, x in line.items()} for line in (just, not_yet)]
    check_reached(found, *ended)
    with pytest.raises(ConfigError, match=f"unknown metric '{metric}_ema' in stop_at"):
        find_target((f"{metric}_ema", value), TASK)


def test_each_metric_is_tried():
    with pytest.raises(ConfigError) as error:
        find_target(("val", 1.0), TASK)
    known = str(error.value).partition("; known: ")[2].split(", ")
    assert sorted(known) == sorted(metric for metric, _ in REACHED)


def test_a_metric_that_rises_is_to_be_at_least_its_target():
    """Of another task; and 100 less it falls."""
    iou = Metric("%", rises=True, complement="distance")
    task = Task(lambda: (), lambda: {}, {}, {"iou": iou}, "iou")
    lines = [{"step": step, "val_iou": iou} for step, iou in enumerate((40.0, 55.0, 50.0))]
    for metric, value, best in (("val_iou", 50.0, 55.0), ("val_distance", 50.0, 45.0)):
        found = find_target((metric, value), task)
        check_reached(found, {"val_iou": 50.0}, {"val_iou": 49.9})
        assert (found.first(lines), found.best(lines)) == (lines[1], best)


@pytest.mark.parametrize("correct", range(0, 101, 7))
@pytest.mark.parametrize("examples", [100, 360, 50_000])
def test_an_accuracy_and_its_error_are_reached_together(correct, examples):
    """However the percentages round: as many correct answers as the target asks for are enough."""
    right = examples * correct // 100
    error = {"val_error": 100.0 * (examples - right) / examples}
    if 100 * right == correct * examples:
        assert target("val_accuracy", float(correct)).reached(error)
        assert target("val_error", 100.0 - correct).reached(error)
    assert not target("val_accuracy", correct + 0.001).reached(error)


def test_the_first_evaluation_that_reaches_it_counts():
    lines = [
        {"step": 1, "train_error": 0.0},
        {"step": 1, "val_error": 30.0},
        {"step": 2, "val_error": 20.0},
        {"step": 3, "val_error": 10.0},
    ]
    assert target("val_error", 25.0).first(lines) == lines[2]
    assert target("val_accuracy", 95.0).first(lines) is None
    assert target("val_accuracy", 95.0).best(lines) == 90.0
    assert target("val_error", 5.0).best(lines) == 10.0
    assert target("val_loss", 5.0).best(lines) is None


WRONG = {
    ("val_error",): "stop_at must be a metric and a number, like ('val_error', 24.1), not ('val_e",
    (24.1, "val_error"): "stop_at must be a metric and a number, like",
    ("val_error", 24.1, 5): "stop_at must be a metric and a number, like",
    ("val_error", "24.1"): "the target of 'val_error' must be a number, and finite, not '24.1'",
    ("val_error", True): "the target of 'val_error' must be a number",
    ("val_error", None): "the target of 'val_error' must be a number",
    ("val_loss", float("nan")): "must be a number, and finite, not nan",
    ("val_loss", float("inf")): "must be a number, and finite, not inf",
}
# What the task knows.
WRONG_OF_TASK = {
    ("val_eror", 24.1): "unknown metric 'val_eror' in stop_at; known: val_loss, val_error, val_acc",
    ("train_error", 5.0): "unknown metric 'train_error' in stop_at; known: ",
    ("val_error", -1.0): "stop_at: val_error is in percent, so it cannot be -1.0",
    ("val_accuracy", 100.5): "stop_at: val_accuracy is in percent, so it cannot be 100.5",
    ("val_error_top5", 759): "stop_at: val_error_top5 is in percent, so it cannot be 759",
}


@pytest.mark.parametrize("stop_at", WRONG, ids=str)
def test_what_is_no_target_says_so(stop_at):
    with pytest.raises(ConfigError) as error:
        resolve(config_with(stop_at=stop_at))
    assert WRONG[stop_at] in str(error.value)


@pytest.mark.parametrize("stop_at", WRONG_OF_TASK, ids=str)
def test_what_is_no_target_of_the_task_says_so(stop_at):
    checked = resolve(config_with(stop_at=stop_at)).stop_at
    with pytest.raises(ConfigError) as error:
        find_target(checked, TASK)
    assert WRONG_OF_TASK[stop_at] in str(error.value)


@pytest.mark.parametrize("metric", ["val_error_top5", "val_accuracy_top5"])
@pytest.mark.parametrize(("classes", "there"), [(5, False), (6, True)])
def test_a_top5_target_needs_more_than_5_classes(metric, classes, there):
    config = default_config()
    config.update({"batch_size": 8, "worker_batch_size": 8, "total_steps": 1, "devices": 1})
    config.update({"stop_at": (metric, 5.0), "learning_rate": {"warmup": "none"}})
    config.model.name = "cifar_resnet8"
    config.data.update({"source": "synthetic", "synthetic_classes": classes, "image_size": 8})
    config.data.update({"synthetic_examples": 20, "synthetic_validation_examples": 4})
    if there:
        build(resolve(config))
        return
    says = f"unknown metric '{metric}' in stop_at; known: val_loss, val_error, val_accuracy$"
    with pytest.raises(ConfigError, match=says):
        build(resolve(config))
