"""Keys of the task: what is learned, and its loss."""

from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import Condition, Key, Keys

_OF_CLASSIFICATION = {"task.name": ("classification",)}


def _of_ones_own(key: str) -> Condition:
    return Condition(f'{key}="package.module:name"', lambda values: is_dotted(values[key]))


KEYS: Keys = {
    "task.name": Key(
        "classification",
        "The task: what a batch holds, its loss and metrics, and what a run is judged by.",
        choices=("classification",),
        dotted=True,
    ),
    "task.options": Key(
        {},
        "What a task of one's own takes besides the number of classes.",
        used_if=_of_ones_own("task.name"),
    ),
    "task.loss": Key(
        "cross_entropy",
        "The loss of each example; one's own is a function (logits, labels) -> [n].",
        choices=("cross_entropy",),
        dotted=True,
        used_with=_OF_CLASSIFICATION,
    ),
    "task.loss_options": Key(
        {},
        "What a loss of one's own takes besides.",
        used_with=_OF_CLASSIFICATION,
        used_if=_of_ones_own("task.loss"),
    ),
    "label_smoothing": Key(
        0.0,
        "The part of a label that is spread over all classes.",
        fraction=True,
        used_with={**_OF_CLASSIFICATION, "task.loss": ("cross_entropy",)},
    ),
}
