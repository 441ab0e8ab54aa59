"""The task of classification: its loss, metrics and sums, against loops over examples."""

import jax.numpy as jnp
import numpy as np
import pytest

from lbsgd.system.errors import ConfigError
from lbsgd.tasks import Metric, Task
from lbsgd.tasks.classification import classification
from lbsgd.tasks.task import means

LOGITS = np.random.default_rng(5).normal(size=(6, 8)).astype(np.float32)
LABELS = np.array([0, 3, 7, 3, 5, 1], np.int32)


def batch(**more):
    return {"label": jnp.asarray(LABELS), **more}


def test_the_loss_of_a_worker_is_the_mean_and_its_error_a_percentage():
    task = classification(8)
    loss, metrics = task.loss(jnp.asarray(LOGITS), batch())
    expected = -np.mean([log_p(i)[label] for i, label in enumerate(LABELS)])
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    wrong = np.mean(LOGITS.argmax(axis=1) != LABELS)
    assert metrics.keys() == task.metrics.keys() == {"error"}
    assert float(metrics["error"]) == pytest.approx(100 * wrong, rel=1e-6)


def log_p(i):
    wide = LOGITS[i].astype(np.float64)
    return wide - np.log(np.exp(wide).sum())


def test_label_smoothing_is_a_number_that_the_loss_takes():
    assert classification(8).numbers == {}
    task = classification(8, label_smoothing=0.1)
    assert task.numbers == {"label_smoothing": 0.1}
    loss, _ = task.loss(jnp.asarray(LOGITS), batch(), label_smoothing=jnp.float32(0.3))
    target = 0.7 * np.eye(8)[LABELS] + 0.3 / 8
    expected = -np.mean([target[i] @ log_p(i) for i in range(6)])
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_mixed_examples_have_the_loss_of_both_labels():
    share = np.array([1.0, 0.5, 0.25, 0.0, 0.9, 0.3], np.float32)
    loss, _ = classification(8).loss(jnp.asarray(LOGITS), batch(mix_share=jnp.asarray(share)))
    partner = np.roll(LABELS, -1)
    own = np.array([log_p(i)[label] for i, label in enumerate(LABELS)])
    others = np.array([log_p(i)[label] for i, label in enumerate(partner)])
    expected = -np.mean(share * own + (1 - share) * others)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("smoothing", "classes"), [(0.0, 8), (0.1, 8), (0.1, 5)])
def test_mixed_targets_are_distributions_over_the_classes_of_the_data(smoothing, classes):
    """Smoothed over all outputs, of which there may be more; the error is that of the label."""
    task = classification(classes)
    targets = np.random.default_rng(2).dirichlet(np.ones(classes), 6).astype(np.float32)
    labels = jnp.asarray(LABELS % classes)
    mixed = {"label": labels, "mixed_target": jnp.asarray(targets)}
    loss, metrics = task.loss(jnp.asarray(LOGITS), mixed, label_smoothing=jnp.float32(smoothing))
    whole = np.zeros((6, 8))
    whole[:, :classes] = targets
    smooth = (1 - smoothing) * whole + smoothing / 8
    assert float(loss) == pytest.approx(-np.mean([smooth[i] @ log_p(i) for i in range(6)]), 1e-6)
    plain, of_labels = task.loss(jnp.asarray(LOGITS), {"label": labels})
    assert metrics == of_labels
    one_hot = task.distributions({"label": labels})
    np.testing.assert_array_equal(one_hot, np.eye(classes, dtype=np.float32)[labels])
    assert float(task.loss(jnp.asarray(LOGITS), {"label": labels, "mixed_target": one_hot})[0]) == (
        pytest.approx(float(plain), rel=1e-6)
    )


def test_sums_over_examples_give_loss_and_percentages():
    task = classification(8)
    found = task.evaluate(jnp.asarray(LOGITS), batch())
    sums = {name: np.asarray(np.asarray(x, np.float64).sum()) for name, x in found.items()}
    values = task.summarize(sums, 6)
    assert values.keys() == task.validation.keys() == {"loss", "error", "error_top5"}
    order = np.argsort(-LOGITS, axis=1)
    top5 = np.mean([label not in row[:5] for label, row in zip(LABELS, order)])
    assert values["error_top5"] == pytest.approx(100 * top5)
    assert values["error"] == pytest.approx(100 * np.mean(order[:, 0] != LABELS))
    assert (task.headline, task.best.rises, task.best.unit) == ("error", False, "%")


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_with_five_classes_or_fewer_there_is_no_top5(classes):
    task = classification(classes)
    assert set(task.validation) == {"loss", "error"}
    labels = {"label": jnp.zeros(6, jnp.int32)}
    assert set(task.evaluate(jnp.asarray(LOGITS[:, :classes]), labels)) == {"loss", "error"}


def test_a_loss_of_ones_own_is_that_of_evaluation_too():
    def distance(logits, labels):
        return jnp.abs(jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0])

    task = classification(8, loss=distance)
    assert task.distributions is None  # it takes labels
    each = np.abs(LOGITS[np.arange(6), LABELS])
    loss, _ = task.loss(jnp.asarray(LOGITS), batch())
    assert float(loss) == pytest.approx(each.mean(), rel=1e-6)
    np.testing.assert_allclose(task.evaluate(jnp.asarray(LOGITS), batch())["loss"], each, rtol=1e-6)
    with pytest.raises(ConfigError, match="a loss for each of n examples"):
        classification(8, loss=lambda logits, labels: logits.mean()).loss(
            jnp.asarray(LOGITS), batch()
        )


@pytest.mark.parametrize("outputs", [LOGITS[:1, :7], LOGITS[0], {"a": LOGITS}, LOGITS])
def test_outputs_for_an_image_that_are_no_logits_are_refused(outputs):
    wrong = classification(8).wrong_outputs
    assert "classification takes logits (1, 8)" in wrong(outputs)
    assert wrong(LOGITS[:1]) == ""
    with pytest.raises(ConfigError, match="the network gives outputs of shape"):
        classification(8).loss(jnp.asarray(LOGITS[:, :7]), batch())


def test_a_task_is_consistent_in_itself():
    parts = {"loss": lambda o, b: (0.0, {}), "evaluate": lambda o, b: {}, "metrics": {}}
    parts["validation"] = {"loss": Metric()}
    assert Task(**parts, headline="loss").summarize is means
    with pytest.raises(ValueError, match="headline 'error' is none of validation: loss"):
        Task(**parts, headline="error")
    with pytest.raises(ValueError, match="must not hold 'loss'"):
        Task(**{**parts, "metrics": {"loss": Metric()}}, headline="loss")


def test_a_metric_is_consistent_in_itself():
    for wrong in ("median", "Mean", ""):
        with pytest.raises(
            ValueError, match="a metric's reduction is mean, sum, max or a Reduction"
        ):
            Metric(reduction=wrong)
    with pytest.raises(ValueError, match="a metric's unit is '' or '%', not 'nats'"):
        Metric("nats")
    parts = {"loss": lambda o, b: (0.0, {}), "evaluate": lambda o, b: {}, "metrics": {}}
    with pytest.raises(ValueError, match="'loss' has a reduction, which is of training"):
        Task(**parts, validation={"loss": Metric(reduction="max")}, headline="loss")


def test_values_are_written_with_their_units():
    assert Metric("%").format(24.1) == "24.10%"
    assert Metric().format(0.69314) == "0.6931"
