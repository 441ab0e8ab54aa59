"""Keys of the loss, and of updates that are not finite."""

from lbsgd.config.keys import Key, Keys

KEYS: Keys = {
    "label_smoothing": Key(
        0.0, "The part of a label that is spread over all classes.", fraction=True
    ),
    "on_nonfinite": Key(
        "stop",
        "What happens where the loss or the gradient is not finite: stop ends the run; skip leaves "
        "the state as it was before that update.",
        choices=("stop", "skip"),
        machine=True,
    ),
    "max_nonfinite": Key(
        10,
        "How many updates may be skipped before the run ends.",
        unit="updates",
        machine=True,
        used_with={"on_nonfinite": ("skip",)},
    ),
}
