"""Keys of the optimizer."""

from collections.abc import Mapping
from typing import Any

from lbsgd.config.dotted import is_dotted
from lbsgd.config.keys import ON, Condition, Key, Keys, Must, Wanted, times
from lbsgd.system.text import is_number

# As `lbsgd.models.roles.Role` has them, which needs JAX.
ROLES = ("kernel", "bias", "norm scale", "norm offset")
# Of a rate; more is a slip.
MOST_MULTIPLIER = 1e6
_OF_SGD = {"optimizer.name": ("sgd", "lars", "spngd")}
_OF_SPNGD = {"optimizer.name": ("spngd",)}
_OF_LARS = {"optimizer.name": ("lars",)}
_OF_LAMB = {"optimizer.name": ("lamb",)}
_OF_MOMENTUM: Mapping[str, Wanted] = {**_OF_SGD, "optimizer.momentum": ON}
_OF_OTHERS = Condition(
    'optimizer.name="package.module:name"', lambda values: is_dotted(values["optimizer.name"])
)
_OF_ALL_BUT_LAMB = Condition(
    "any optimizer but lamb", lambda values: values["optimizer.name"] != "lamb"
)
_DECAY_OF_A_FORM = Condition(
    "any optimizer but lamb and spngd",
    lambda values: values["optimizer.name"] not in ("lamb", "spngd"),
)


def _are_patterns(patterns: tuple[Any, ...]) -> bool:
    return all(isinstance(pattern, str) and pattern for pattern in patterns)


def _are_multipliers(numbers: Mapping[Any, Any]) -> bool:
    # Of what 0 would leave as it is, optimizer.freeze spares the computation.
    return all(is_number(number) and 0 < number <= MOST_MULTIPLIER for number in numbers.values())


KEYS: Keys = {
    "optimizer.name": Key(
        "sgd",
        "The optimizer: one of lbsgd's, or a function that makes an optax transformation, as "
        '"optax.contrib:muon".',
        choices=("sgd", "lars", "lamb", "spngd"),
        dotted=True,
    ),
    "optimizer.options": Key(
        {},
        "The arguments of that function but for the rate, the weight decay and what decays.",
        used_if=_OF_OTHERS,
    ),
    "optimizer.momentum": Key(0.9, "The momentum m; 0 for none.", fraction=True, used_with=_OF_SGD),
    "optimizer.nesterov": Key(True, "Whether momentum is Nesterov's.", used_with=_OF_MOMENTUM),
    "optimizer.momentum_form": Key(
        "rate_outside",
        "Where the rate is: outside the buffer, equation (9) of Goyal et al., or inside, equation "
        "(10). With lars the trust ratio is where the rate is: rate_inside is the paper's "
        '("scaled") variant.',
        choices=("rate_outside", "rate_inside"),
        used_with=_OF_MOMENTUM,
    ),
    "optimizer.momentum_correction": Key(
        True,
        "Whether momentum is corrected where the rate changes; the papers of LARS have none.",
        used_with={"optimizer.momentum_form": ("rate_inside",)},
    ),
    "optimizer.weight_decay": Key(1e-4, "The weight decay lambda of kernels; 0 for none."),
    "optimizer.decayed_roles": Key(
        ("kernel",),
        "The roles of the parameters that decay: kernel, bias, norm scale, norm offset.",
        check=Must(
            f"hold at least one of {', '.join(ROLES)}, and nothing else",
            lambda roles: bool(roles) and set(roles) <= set(ROLES),
        ),
        own_check=True,
        used_with={"optimizer.weight_decay": ON},
        used_if=_OF_ALL_BUT_LAMB,
    ),
    "optimizer.weight_decay_form": Key(
        "coupled",
        "The form of weight decay: coupled (L2), or decoupled and scaled by the learning rate. "
        "That of lamb and spngd is always decoupled, and another's may have its own.",
        choices=("coupled", "decoupled"),
        used_with={"optimizer.weight_decay": ON},
        used_if=_DECAY_OF_A_FORM,
    ),
    "optimizer.freeze": Key(
        (),
        'The parameters that are not trained: roles, as "norm scale", or patterns of paths, a glob '
        'for each of their first parts, as "stage1_*" or "*/conv1"; () for none.',
        check=Must(
            "hold roles or patterns of parameters' paths, as ('stem*', 'stage*')", _are_patterns
        ),
        own_check=True,
    ),
    "optimizer.rate_multipliers": Key(
        {},
        "The multipliers of the learning rate, by role or pattern as of optimizer.freeze: "
        "optimizer.rate_multipliers.classifier=10. A parameter that several match has their "
        "product.",
        check=Must(f"hold numbers above 0, at most {MOST_MULTIPLIER:g}", _are_multipliers),
        own_check=True,
    ),
    "optimizer.trust_coefficient": Key(
        0.001, "The coefficient eta of the trust ratio.", positive=True, used_with=_OF_LARS
    ),
    "optimizer.trust_epsilon": Key(
        0.0, "What is added to the norms below the trust ratio.", used_with=_OF_LARS
    ),
    "optimizer.trust_at_zero": Key(
        "one",
        "The trust ratio where a norm is 0: one (MLPerf's reference), or by the paper's formula: "
        "eta / weight_decay of a gradient of 0, and 0 of weights of 0.",
        choices=("one", "formula"),
        used_with=_OF_LARS,
    ),
    "optimizer.beta1": Key(
        0.9, "The decay of the first moments.", fraction=True, used_with=_OF_LAMB
    ),
    "optimizer.beta2": Key(
        0.999, "The decay of the second moments.", fraction=True, used_with=_OF_LAMB
    ),
    "optimizer.epsilon": Key(
        1e-6, "What is added to the root of the second moments.", used_with=_OF_LAMB
    ),
    "optimizer.norm_clip": Key(
        (),
        "The function phi, which clips the norm of the weights in the trust ratio: () for none, or "
        "the least and the greatest norm.",
        used_with=_OF_LAMB,
    ),
    "optimizer.momentum_schedule": Key(
        "constant",
        "Whether the momentum is constant, or in proportion to the learning rate, m at its highest "
        "(the paper of SP-NGD, with the rate inside the buffer and no correction).",
        choices=("constant", "with_rate"),
        used_with={**_OF_SPNGD, "optimizer.momentum": ON},
    ),
    "optimizer.damping": Key(
        2.5e-4,
        "The damping lambda, which is added to the curvature.",
        positive=True,
        used_with=_OF_SPNGD,
    ),
    "optimizer.initial_damping": Key(
        0.0,
        "The damping of the first update, from which it falls to optimizer.damping by a constant "
        "share of what is left; 0 for optimizer.damping from the start.",
        used_with=_OF_SPNGD,
    ),
    **times(
        "optimizer.damping_warmup",
        "T of that share of each update, a = 2 log10(initial_damping / damping) / T.",
        used_with={**_OF_SPNGD, "optimizer.initial_damping": ON},
    ),
    "optimizer.norm_damping": Key(
        16.0,
        "What multiplies the damping of batch norm's parameters.",
        positive=True,
        used_with=_OF_SPNGD,
    ),
    "optimizer.fisher": Key(
        "empirical",
        "Whose gradients curvature is taken from: those of the training loss, in its own backward "
        "pass (empirical), or of one label for each example, sampled from the model, in another "
        "(1mc).",
        choices=("empirical", "1mc"),
        used_with=_OF_SPNGD,
    ),
    "optimizer.fisher_share": Key(
        1.0,
        "The share of each worker's n examples, the first of them, that curvature is taken from.",
        positive=True,
        most=1.0,
        used_with=_OF_SPNGD,
    ),
    "optimizer.norm_fisher": Key(
        "unit_wise",
        "What batch norm's Fisher is of: unit_wise, scale and offset of a channel, or full, all of "
        "a layer's.",
        choices=("unit_wise", "full"),
        used_with=_OF_SPNGD,
    ),
    "optimizer.statistics_dtype": Key(
        "own",
        "What statistics of curvature are sent in between devices; their sums are float32.",
        choices=("own", "bfloat16"),
        used_with=_OF_SPNGD,
    ),
    "optimizer.stale_threshold": Key(
        0.0,
        "The change of a statistic of curvature, as a share of its norm, below which it is "
        "refreshed more and more rarely; 0 refreshes all in each update (the paper of SP-NGD: "
        "0.1).",
        fraction=True,
        used_with=_OF_SPNGD,
    ),
    "optimizer.weight_rescaling": Key(
        "none",
        "Whether each kernel is scaled to the norm sqrt(2 d_out) after every update: always, as in "
        "the paper of SP-NGD, or where its norm is larger, as in its code.",
        choices=("none", "always", "larger"),
        used_with=_OF_SPNGD,
    ),
}
