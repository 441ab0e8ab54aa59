"""Keys of the length, the batch sizes, the learning rate, and when a run measures itself."""

from lbsgd.config.keys import ON, UNITS, Condition, Key, Keys, Must, any_time, times, whole

_OF_GROWTH = {"batch_growth.in_place_of_decay": ON}
_OF_WARMUP = {"learning_rate.warmup": ("gradual", "constant")}
_OF_STEPS = {"learning_rate.decay": ("steps",)}
_OF_POLYNOMIAL = {"learning_rate.decay": ("polynomial",)}
_OF_SMOOTH = {"learning_rate.decay": ("cosine", "polynomial")}


def _no_time(name: str) -> Condition:
    return Condition(
        f"no {name}_*, which is set",
        lambda values: not any(values[name + unit] for unit in UNITS),
    )


# Where the rate is in proportion to it, or warmup begins at the rate that it has.
_REFERENCE_COUNTS = Condition(
    "learning_rate.scaling='linear' or 'sqrt', or learning_rate.warmup_from='reference'",
    lambda values: (
        values["learning_rate.scaling"] != "none"
        or (
            values["learning_rate.warmup"] != "none"
            and values["learning_rate.warmup_from"] == "reference"
        )
    ),
)

_GROWS = Condition(
    "batch_growth.sizes, which is off",
    # With the other one it is no key without effect: the two contradict each other.
    lambda values: bool(values["batch_growth.sizes"] or values["batch_growth.in_place_of_decay"]),
)

_LENGTH: Keys = times("total", "The length of training.")

_BATCH_GROWTH: Keys = {
    "batch_growth.sizes": Key(
        (),
        "The batch sizes after the first. The worker batch size stays, and the number of workers "
        "follows.",
        unit="examples",
        check=Must(
            "be whole and positive", lambda sizes: whole(sizes) and min(sizes, default=1) > 0
        ),
    ),
    "batch_growth.at_epochs": Key(
        (), "The epochs at which each of batch_growth.sizes begins.", unit="epochs"
    ),
    "batch_growth.at_steps": Key(
        (),
        "The updates at which each of batch_growth.sizes begins; set instead of at_epochs.",
        unit="updates",
        check=Must("be whole numbers", whole),
    ),
    "batch_growth.in_place_of_decay": Key(
        False,
        "Whether the batch grows where learning_rate.decay='steps' would decay the rate, by as "
        "much, up to batch_growth.largest; from there on the rate decays.",
    ),
    "batch_growth.largest": Key(
        0, "The batch size that is not exceeded; 0 for none.", unit="examples", used_with=_OF_GROWTH
    ),
    "batch_growth.compensate": Key(
        "none",
        "What changes with the size: nothing, the rate, by learning_rate.scaling, or the momentum, "
        "so that the noise scale stays.",
        choices=("none", "rate", "momentum"),
        used_if=_GROWS,
    ),
}

_LEARNING_RATE: Keys = {
    "learning_rate.reference_learning_rate": Key(
        0.1, "The learning rate for a batch of reference_batch_size."
    ),
    "learning_rate.reference_batch_size": Key(
        256,
        "The batch size that the reference rate is for.",
        unit="examples",
        positive=True,
        used_if=_REFERENCE_COUNTS,
    ),
    "learning_rate.scaling": Key(
        "linear",
        "How the rate follows the batch size, from the reference to batch_size.",
        choices=("linear", "sqrt", "none"),
    ),
    "learning_rate.warmup": Key(
        "gradual",
        "How the rate warms up from a lower one: gradual, or constant at the reference rate.",
        choices=("gradual", "constant", "none"),
    ),
    "learning_rate.warmup_from": Key(
        "reference",
        "Where warmup begins: at the reference rate (Goyal et al.), and then only if batch_size is "
        "above reference_batch_size; or at zero (MLPerf), whatever the sizes are.",
        choices=("reference", "zero"),
        used_with=_OF_WARMUP,
    ),
    "learning_rate.warmup_power": Key(
        1.0,
        "The power of the time that the rate rises with; 1 for a constant increment.",
        positive=True,
        used_with={"learning_rate.warmup": ("gradual",)},
    ),
    **times("learning_rate.warmup", "The length of warmup.", epochs=5.0, used_with=_OF_WARMUP),
    "learning_rate.decay": Key(
        "steps",
        "How the rate decays.",
        choices=("steps", "cosine", "polynomial", "none"),
    ),
    "learning_rate.decay_from": Key(
        "warmup",
        "Whether the decay begins at the end of warmup, or at the start of training, so that "
        "warmup ends above it and the rate then drops.",
        choices=("warmup", "start"),
        used_with=_OF_SMOOTH,
        used_if=_no_time("learning_rate.decay_start"),
    ),
    **times(
        "learning_rate.decay_start",
        "When a decay by cosine or polynomial begins, up to which the rate is the full one; by "
        "default where learning_rate.decay_from says.",
        used_with=_OF_SMOOTH,
    ),
    **times(
        "learning_rate.decay_end",
        "When it would be over, be it after the end of training; by default at the end.",
        used_with=_OF_SMOOTH,
    ),
    "learning_rate.decay_epochs": Key(
        (30.0, 60.0, 80.0),
        "The epochs at which the rate decays.",
        unit="epochs",
        check=Must("increase", lambda epochs: list(epochs) == sorted(set(epochs))),
        used_with=_OF_STEPS,
    ),
    "learning_rate.decay_factor": Key(
        0.1, "What each decay multiplies the rate by.", most=10**6, used_with=_OF_STEPS
    ),
    "learning_rate.decay_power": Key(2.0, "The power of the polynomial.", used_with=_OF_POLYNOMIAL),
    "learning_rate.decay_end_rate": Key(
        0.0, "The rate that the polynomial ends at.", used_with=_OF_POLYNOMIAL
    ),
    "learning_rate.decay_past_end_steps": Key(
        0,
        "How long after the end of training the polynomial would get there; 1 in MLPerf.",
        unit="updates",
        most=10**8,
        used_with=_OF_POLYNOMIAL,
        used_if=_no_time("learning_rate.decay_end"),
    ),
}

# How far a batch can grow (docs/diagnostics.md).
_DIAGNOSTICS: Keys = {
    **times(
        "diagnostics.workers.every",
        "How often the noise scale and the cosines of neighbouring workers are measured; every 100 "
        "updates costs less than 3% of the time.",
        machine=True,
    ),
    "diagnostics.workers.window": Key(
        5,
        "How many of the last measurements are averaged: fewer follow faster, more scatter less.",
        unit="measurements",
        positive=True,
        machine=True,
        used_if=any_time("diagnostics.workers.every"),
    ),
    **times(
        "diagnostics.confusion.every",
        "How often gradient confusion is measured: the cosines of pairs of minibatches.",
        machine=True,
    ),
    "diagnostics.confusion.pairs": Key(
        100,
        "How many pairs of minibatches gradient confusion is measured over.",
        positive=True,
        most=10**6,
        machine=True,
        used_if=any_time("diagnostics.confusion.every"),
    ),
    "diagnostics.confusion.batch_size": Key(
        128,
        "The size of the minibatches that gradient confusion compares.",
        unit="examples",
        positive=True,
        machine=True,
        used_if=any_time("diagnostics.confusion.every"),
    ),
    **times(
        "diagnostics.layers.every",
        "How often the norms of gradient, parameters and update, and the trust ratios, of each "
        "parameter array are written.",
        machine=True,
    ),
    "diagnostics.in_turn": Key(
        False,
        "Whether workers of a device are measured one after the other, to save memory. Slow on a "
        "CPU.",
        machine=True,
        used_if=any_time("diagnostics.workers.every", "diagnostics.confusion.every"),
    ),
}

KEYS: Keys = {**_LENGTH, **_LEARNING_RATE, **_BATCH_GROWTH, **_DIAGNOSTICS}
