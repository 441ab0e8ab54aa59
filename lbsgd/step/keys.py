"""Keys of the average of weights, and of updates that are not finite."""

from lbsgd.config.keys import ON, Key, Keys

KEYS: Keys = {
    "ema.decay": Key(
        0.0,
        "The decay d of an exponential moving average of weights w and batch norm's statistics, "
        "e <- d e + (1 - d) w after each update; it is evaluated beside them. 0 for none.",
        fraction=True,
    ),
    "ema.warmup": Key(
        True,
        "Whether d is at most (1 + t) / (10 + t) at update t, so that the first weights are soon "
        "forgotten.",
        used_with={"ema.decay": ON},
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
