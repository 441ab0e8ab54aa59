"""Keys of the network, its batch norm, and the precision it is computed in."""

from collections.abc import Mapping
from typing import Any

from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import Condition, Key, Keys, Values
from lbsgd.system.errors import ConfigError

_OF_BATCH_NORM = {"model.normalization": ("batch",)}
# Of statistics that are not those a network starts with.
_OF_MOVING = {**_OF_BATCH_NORM, "batch_norm.frozen_statistics": (False,)}
# What is said of a key of lbsgd's own networks where another is named, and of a key of those.
_OWN: Mapping[str, Any] = {
    "used_if": Condition(
        "a network of lbsgd's own, which model.name is not",
        lambda values: not is_dotted(values["model.name"]),
    )
}
_DOTTED: Mapping[str, Any] = {
    "used_if": Condition(
        'model.name="package.module:name", which it is not',
        lambda values: is_dotted(values["model.name"]),
    )
}

_MODEL: Keys = {
    "model.name": Key(
        "resnet50",
        "The network: resnet18, 34, 50, 101 or 152, the same with a d (resnet50d) for ResNet-D, or "
        "cifar_resnetD of any depth D = 6n + 2; or a Flax module, or a function that returns one.",
        dotted=True,
    ),
    "model.options": Key(
        {},
        "What the named class or function is given, by argument, as model.options.x=1.",
        **_DOTTED,
    ),
    "model.roles": Key(
        "",
        "The function of path and shape that gives a parameter its role, or None where the class "
        "of its layer decides.",
        dotted=True,
        **_DOTTED,
    ),
    "model.num_classes": Key(
        0,
        "How many outputs the classifier has; 0 for as many as the data have classes.",
        most=10**7,
    ),
    "model.width": Key(
        1.0, "The multiplier of all channel counts.", positive=True, most=1000, **_OWN
    ),
    "model.skip_connections": Key(
        True, "Whether the blocks are residual; without skips they are plain.", **_OWN
    ),
    "model.zero_init_residual": Key(
        True,
        "The last scale of each residual block starts at 0; in a network without scales, the last "
        "kernel.",
        **_OWN,
    ),
    "model.normalization": Key(
        "batch",
        "The normalization: batch norm; group norm (Wu and He 2018), of up to 32 groups of two or "
        "more channels; or none, where convolutions have biases.",
        choices=("batch", "group", "none"),
        **_OWN,
    ),
    "model.remat": Key(
        False,
        "Whether a residual block is computed again in the backward pass, where all but its input "
        "is forgotten: less memory for one more forward pass, and the same numbers.",
        machine=True,
        used_if=Condition(
            "a network of lbsgd's own and an optimizer other than spngd, which keeps the inputs of "
            "all layers",
            lambda values: (
                not is_dotted(values["model.name"]) and values["optimizer.name"] != "spngd"
            ),
        ),
    ),
}

_BATCH_NORM: Keys = {
    "batch_norm.frozen_statistics": Key(
        False,
        "Whether training normalizes as evaluation does, by the running averages that the run "
        "starts with, which do not move: for fine-tuning.",
        used_with=_OF_BATCH_NORM,
    ),
    "batch_norm.momentum": Key(
        0.9,
        "The momentum m of running averages: running <- m running + (1 - m) new.",
        fraction=True,
        used_with=_OF_MOVING,
    ),
    "batch_norm.epsilon": Key(
        1e-5,
        "What is added to the variance.",
        positive=True,
        used_with={"model.normalization": ("batch", "group")},
        **_OWN,
    ),
    "batch_norm.initial_scale_std": Key(
        0.0,
        "The standard deviation of the normal distribution, of mean 1, that scales start from; 0 "
        "for all 1. Those that model.zero_init_residual has at 0 are.",
        most=1.0,
        used_with={"model.normalization": ("batch", "group")},
        **_OWN,
    ),
    "batch_norm.synced_workers": Key(
        1,
        "How many workers share their statistics; 1 for none, as in the paper.",
        unit="workers",
        positive=True,
        used_with=_OF_MOVING,
        **_OWN,
    ),
    "batch_norm.running_variance": Key(
        "within",
        "What the running variance follows: within, the mean of the workers' biased variances; "
        "total, plus the variance of their means.",
        choices=("within", "total"),
        used_with=_OF_MOVING,
    ),
    "batch_norm.precise_examples": Key(
        0,
        "How many training examples, rounded up to whole minibatches, the statistics are computed "
        "anew over before each evaluation; 0 uses the running averages.",
        unit="examples",
        used_with=_OF_MOVING,
    ),
}

_PRECISION: Keys = {
    "dtype": Key(
        "float32",
        "The type of activations. float64 makes parameters float64 too, to study exactness.",
        choices=("float32", "bfloat16", "float64"),
    ),
    "matmul_precision": Key(
        "highest",
        "The precision of products of float32, as JAX names it: highest is float32 in full on "
        "every device; high and default are TF32 on a GPU, and three bfloat16 passes or one on a "
        "TPU; on a CPU they are as highest. With bfloat16 only the classifier has such products.",
        choices=("highest", "high", "default"),
    ),
}

KEYS: Keys = {**_MODEL, **_BATCH_NORM, **_PRECISION}

# Those that say nothing of networks without a batch norm of lbsgd's.
OF_BATCH_NORM = (
    "batch_norm.momentum",
    "batch_norm.running_variance",
    "batch_norm.precise_examples",
)


def check_precision(values: Values) -> None:
    """Raises ConfigError where a precision is asked for of products that there are none of."""
    if values["matmul_precision"] != "highest" and values["dtype"] == "float64":
        raise ConfigError(
            f"matmul_precision={values['matmul_precision']!r} is of products of float32, and dtype="
            "'float64' has none; leave it at 'highest'"
        )
