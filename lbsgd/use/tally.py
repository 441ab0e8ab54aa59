"""Counts predictions: by class, confused with which, and how far probabilities can be relied on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

# As Guo et al. 2017 have it.
BINS = 15
# What was predicted where the outputs are not numbers, or the largest is of no class.
NO_CLASS = -1


class Bin(NamedTuple):
    """Holds the predictions of like confidence.

    Attributes:
      examples: how many there are.
      confidence: their mean; 0 where there are none.
      accuracy: which part of them is right; 0 where there are none.
    """

    examples: int
    confidence: float
    accuracy: float


class Tally:
    """Counts predictions of classes, batch by batch.

    Attributes:
      confusion: how many examples of each class (row) were taken for each class (column),
        `[classes, classes]`.
      unassigned: how many of each class were taken for none, `[classes]`.
    """

    def __init__(self, classes: int) -> None:
        """Counts none yet."""
        self.confusion = np.zeros((classes, classes), np.int64)
        self.unassigned = np.zeros(classes, np.int64)
        # Of each bin: examples, sum of confidences, right ones.
        self._bins = np.zeros((3, BINS))

    def add(
        self,
        labels: Int[np.ndarray, " n"],
        predicted: Int[np.ndarray, " n"],
        confidence: Float[np.ndarray, " n"],
    ) -> None:
        """Counts examples.

        Args:
          predicted: the class of the largest output; what is no class counts as `NO_CLASS`.
          confidence: the probability of that output.
        """
        known = (predicted >= 0) & (predicted < len(self.unassigned))
        np.add.at(self.confusion, (labels[known], predicted[known]), 1)
        np.add.at(self.unassigned, labels[~known], 1)
        right = labels == predicted
        sure = np.where(np.isfinite(confidence), confidence, 0.0).astype(np.float64)
        # Bin m, from 1 on, holds ((m - 1) / M, m / M].
        bins = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
        for row, values in enumerate((np.ones_like(sure), sure, right)):
            np.add.at(self._bins[row], bins, values)

    @property
    def examples(self) -> Int[np.ndarray, " classes"]:
        """Counts the examples of each class."""
        return self.confusion.sum(axis=1) + self.unassigned

    @property
    def right(self) -> Int[np.ndarray, " classes"]:
        """Counts the examples of each class that were predicted rightly."""
        return np.diagonal(self.confusion)

    @property
    def accuracy(self) -> float:
        """Computes the part of all examples that were predicted rightly, in percent."""
        return 100.0 * float(self.right.sum()) / max(float(self.examples.sum()), 1.0)

    @property
    def bins(self) -> list[Bin]:
        """The predictions by confidence, from 0 to 1, in bins of the same width."""
        found = []
        for count, confidence, right in self._bins.T.tolist():
            each = max(count, 1)
            found.append(Bin(int(count), confidence / each, right / each))
        return found

    @property
    def ece(self) -> float:
        """The expected calibration error, from 0 to 1 (Guo et al. 2017, equation 3).

        The mean over examples of |accuracy - confidence| of their bin. It is an estimate that
        depends on the bins, and is biased upwards where there are few examples.
        """
        total = max(sum(one.examples for one in self.bins), 1)
        gaps = (one.examples * abs(one.accuracy - one.confidence) for one in self.bins)
        return sum(gaps) / total

    def by_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Lists the classes that have examples: how many, how many are right, taken for which."""
        wrong = self.confusion - np.diag(self.right)
        found: list[dict[str, Any]] = []
        for label in np.flatnonzero(self.examples).tolist():
            count, right, most = self.examples[label], self.right[label], wrong[label].argmax()
            row = {"class": names[label], "label": label, "examples": int(count)}
            row |= {"right": int(right), "accuracy": 100.0 * float(right) / float(count)}
            taken = {"class": names[most], "examples": int(wrong[label, most])}
            found.append({**row, "most_often_taken_for": taken if wrong[label].any() else None})
        return found
