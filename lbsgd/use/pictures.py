"""Draws what an evaluation found: the confusion matrix, and how reliable the probabilities are."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lbsgd.system.figures import new_figure
from lbsgd.system.text import printable, shorten
from lbsgd.use.tally import BINS, Tally

# Up to so many classes a cell has its number, and a row its name; of more they could not be read.
MOST_NUMBERED, MOST_NAMED = 20, 80
_INCHES = (5.0, 16.0)
_LONGEST_NAME = 24


def confusion_picture(tally: Tally, names: Sequence[str], title: str) -> Any:
    """Draws for each class which classes its examples were taken for, in percent of its examples.

    Readable from 2 to 1000 classes: a colour is a root of its part, so that few mistakes are seen
    too, and numbers and names are there as long as they have room.
    """
    from matplotlib.colors import PowerNorm

    classes = len(names)
    side = float(np.clip(0.35 * classes, *_INCHES))
    figure = new_figure(side + 3.0, side + 2.0)
    axes = figure.subplots()
    percent = 100.0 * tally.confusion / np.maximum(tally.examples, 1)[:, None]
    drawn = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="% of the examples of a class")
    axes.set(xlabel="predicted", ylabel="class", title=title)
    if classes <= MOST_NAMED:
        shown = [shorten(printable(name), _LONGEST_NAME) for name in names]
        axes.set_xticks(range(classes), shown, rotation=90)
        axes.set_yticks(range(classes), shown)
    if classes <= MOST_NUMBERED:
        for row, column in zip(*np.nonzero(tally.confusion)):
            # White on dark blue.
            color = "white" if percent[row, column] > 40 else "black"
            text = f"{percent[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    return figure


def reliability_picture(tally: Tally, title: str) -> Any:
    """Draws accuracy over confidence, bin by bin (a reliability diagram), and how many there are.

    Where bars end on the diagonal, probabilities are what they say.
    """
    figure = new_figure(6.0, 7.0)
    accuracy, count = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = tally.bins
    there = [i for i, one in enumerate(bins) if one.examples]
    middle = [(i + 0.5) / BINS for i in there]
    bar = {"width": 1.0 / BINS, "edgecolor": "white"}
    accuracy.bar(
        middle, [bins[i].accuracy for i in there], color="tab:blue", label="accuracy", **bar
    )
    confidence = [bins[i].confidence for i in there]
    accuracy.plot(confidence, confidence, "_", color="tab:red", markersize=16, label="confidence")
    accuracy.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8)
    accuracy.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    accuracy.set_title(f"{title}\nexpected calibration error {100 * tally.ece:.2f}%")
    accuracy.legend(loc="upper left")
    count.bar(middle, [bins[i].examples for i in there], color="tab:gray", **bar)
    count.set(xlabel="confidence: the probability of the predicted class", ylabel="examples")
    return figure
