"""Confusion and calibration, against scikit-learn and a loop over the definition."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from lbsgd.use.tally import BINS, NO_CLASS, Tally


@pytest.fixture
def drawn():
    """Labels, predictions and confidences of 500 examples, also at the ends of bins."""
    rng = np.random.default_rng(3)
    labels, predicted = rng.integers(0, 4, 500), rng.integers(0, 5, 500)
    confidence = rng.random(500)
    confidence[:40] = np.tile(np.arange(1, 11) / 10, 4)
    return labels, predicted, confidence


def test_confusion_is_that_of_scikit_learn(drawn):
    """In whatever parts it is counted; a prediction past the classes is of none."""
    labels, predicted, confidence = drawn
    tally = Tally(4)
    for part in (slice(0, 7), slice(7, 7), slice(7, 500)):
        tally.add(labels[part], predicted[part], confidence[part])
    whole = confusion_matrix(labels, predicted, labels=range(5))
    np.testing.assert_array_equal(tally.confusion, whole[:4, :4])
    np.testing.assert_array_equal(tally.unassigned, whole[:4, 4])
    np.testing.assert_array_equal(tally.examples, np.bincount(labels))


def test_calibration_error_is_its_definition(drawn):
    """Guo et al. 2017, equation 3: bin m of M = 15 is ((m - 1) / M, m / M]."""
    labels, predicted, confidence = drawn
    tally = Tally(5)
    tally.add(labels, predicted, confidence)
    error = 0.0
    for m in range(1, BINS + 1):
        inside = [i for i, c in enumerate(confidence) if (m - 1) / BINS < c <= m / BINS]
        if inside:
            accuracy = np.mean([predicted[i] == labels[i] for i in inside])
            error += len(inside) / 500 * abs(accuracy - np.mean([confidence[i] for i in inside]))
    assert tally.ece == pytest.approx(error, abs=1e-12)
    assert sum(one.examples for one in tally.bins) == 500


@pytest.mark.parametrize(
    ("confidence", "right", "ece"),
    [
        ([0.5, 0.5], [1, 0], 0.0),
        ([1.0, 1.0], [1, 0], 0.5),
        ([0.9] * 4, [1] * 4, 0.1),
        ([0.2, 0.25], [1, 0], (0.8 + 0.25) / 2),  # 0.2 = 3 / 15 is in bin 3, and not in 4
        ([], [], 0.0),
    ],
)
def test_calibration_error_by_hand(confidence, right, ece):
    tally = Tally(2)
    labels = np.zeros(len(right), int)
    tally.add(labels, 1 - np.array(right, int), np.array(confidence, float))
    assert tally.ece == pytest.approx(ece, abs=1e-12)


def test_a_class_is_most_often_taken_for_what_its_own_examples_are_taken_for():
    """And not for what is taken for it."""
    tally = Tally(3)
    tally.add(np.array([0, 0, 0, 0, 2, 2]), np.array([0, 1, 1, 2, 0, 0]), np.full(6, 0.5))
    taken = {row["class"]: row["most_often_taken_for"] for row in tally.by_class(["a", "b", "c"])}
    assert taken == {"a": {"class": "b", "examples": 2}, "c": {"class": "a", "examples": 2}}


def test_outputs_that_are_no_numbers_are_wrong():
    tally = Tally(2)
    tally.add(np.array([0, 1]), np.array([NO_CLASS, 1]), np.array([np.nan, 0.75]))
    assert tally.unassigned.tolist() == [1, 0]
    assert tally.ece == pytest.approx(0.125)  # (0 + 0.25) / 2
    first, second = tally.by_class(["a", "b"])
    assert (first["accuracy"], first["most_often_taken_for"]) == (0.0, None)
    assert second == {
        "class": "b",
        "label": 1,
        "examples": 1,
        "right": 1,
        "accuracy": 100.0,
        "most_often_taken_for": None,
    }
