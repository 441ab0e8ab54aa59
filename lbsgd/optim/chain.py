"""Puts the optimizer of a run together from the transforms of this package.

Every transform is an optax `GradientTransformationExtraArgs`. None counts updates: whoever calls
`update` says which update it is, `optimizer.update(gradient, state, params, update_index=t)`, so
that the update index of the run is the only counter there is.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from lbsgd.models.roles import Role
from lbsgd.optim.layerwise import scale_by_lamb, scale_by_trust_ratio
from lbsgd.optim.momentum import rate_inside_momentum, rate_outside_momentum
from lbsgd.optim.weight_decay import coupled_weight_decay, decoupled_weight_decay
from lbsgd.schedule.functions import Schedule
from lbsgd.system.errors import ConfigError

# Goyal et al. (section 5.1) spare the coefficients of batch norm, and say nothing of biases.
# MLPerf's reference of LARS spares both, from decay and from trust ratios.
DECAYED_ROLES = frozenset({Role.KERNEL})
SCALED_ROLES = frozenset({Role.KERNEL})
# Less is 0 in float32, and LAMB's 0 / (0 + epsilon) not a number.
LEAST_EPSILON = 1e-30


def decayed(roles: Any) -> Any:
    """Tells which parameters decay: kernels, so neither norm parameters nor biases."""
    return jax.tree.map(lambda role: role in DECAYED_ROLES, roles)


def scaled(roles: Any) -> Any:
    """Tells which parameters have a trust ratio, with LARS and LAMB: kernels."""
    return jax.tree.map(lambda role: role in SCALED_ROLES, roles)


def scale_by_negative_rate(learning_rate: Schedule) -> optax.GradientTransformationExtraArgs:
    """Turns a direction into a change of the parameters, x <- -eta_t x."""

    def update(
        direction: Any,
        state: Any,
        params: Any = None,
        *,
        update_index: jax.typing.ArrayLike,
        **_: Any,
    ) -> tuple[Any, Any]:
        # Not by `optax.scale_by_learning_rate`, which counts updates itself where the rate varies.
        rate = learning_rate(update_index)
        # In the array's own type, for strict promotion refuses to mix a float32 rate with bfloat16.
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, direction), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def negate() -> optax.GradientTransformationExtraArgs:
    """Negates a direction that holds its learning rate already, x <- -x."""

    def update(direction: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u: -u, direction), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def sgd(
    learning_rate: Schedule,
    roles: Any,
    *,
    momentum: float | Schedule = 0.9,
    nesterov: bool = False,
    momentum_form: str = "rate_outside",
    momentum_correction: bool = True,
    weight_decay: float = 0.0,
    weight_decay_form: str = "coupled",
) -> optax.GradientTransformationExtraArgs:
    """Makes minibatch SGD as in Goyal et al. 2017: decay, momentum and rate, in the order chosen.

    Args:
      learning_rate: schedule of the rate.
      roles: like the parameters (`models.roles.split_roles`); decides what decays.
      momentum: m, or a schedule of it; 0 for none.
      nesterov: Nesterov's momentum.
      momentum_form: "rate_outside", equation (9), or "rate_inside", equation (10).
      momentum_correction: of form (10); form (9) needs none.
      weight_decay: lambda.
      weight_decay_form: "coupled" (L2, the paper's) or "decoupled".
    """
    # Coupled decay is part of the gradient that momentum averages, decoupled decay is past it.
    steps: list[optax.GradientTransformation] = []
    if weight_decay and weight_decay_form == "coupled":
        steps.append(coupled_weight_decay(weight_decay, decayed(roles)))
    # Without momentum there is no buffer, which takes as much memory as the parameters.
    if momentum and momentum_form == "rate_inside":
        steps.append(
            rate_inside_momentum(
                learning_rate, momentum, nesterov=nesterov, correction=momentum_correction
            )
        )
        # The rate is in the buffer already: scaling by it again would square it.
        steps.append(negate())
    else:
        if momentum:
            steps.append(rate_outside_momentum(momentum, nesterov=nesterov))
        steps.append(scale_by_negative_rate(learning_rate))
    if weight_decay and weight_decay_form == "decoupled":
        steps.append(decoupled_weight_decay(learning_rate, weight_decay, decayed(roles)))
    return optax.chain(*steps)


def lars(
    learning_rate: Schedule,
    roles: Any,
    *,
    momentum: float | Schedule = 0.9,
    nesterov: bool = False,
    momentum_form: str = "rate_inside",
    momentum_correction: bool = False,
    weight_decay: float = 0.0,
    weight_decay_form: str = "coupled",
    trust_coefficient: float = 0.001,
    trust_epsilon: float = 0.0,
    trust_at_zero: str = "one",
) -> optax.GradientTransformationExtraArgs:
    """Makes LARS (You, Gitman and Ginsburg 2017): SGD whose kernels have a trust ratio each.

    Args:
      momentum_form: "rate_inside", rate and trust ratio in the buffer (the paper, "scaled"), or
        "rate_outside", both outside it ("unscaled").
      momentum_correction: of "rate_inside": by the ratio of the rates, as in `sgd`; trust ratios
        stay in the buffer as they were. The paper and MLPerf's reference have none.
      weight_decay_form: "coupled" (the paper's; the decay is in the trust ratio) or "decoupled"
        (past ratio and momentum).
      trust_coefficient: eta.
      trust_epsilon: beside the norms below it.
      trust_at_zero: the ratio where a norm is 0: "one" or by the "formula", see `layerwise`. The
        other arguments are those of `sgd`.
    """
    # The paper's formula has decay in the ratio only where it is part of the gradient.
    coupled = weight_decay if weight_decay_form == "coupled" else 0.0
    outside = bool(momentum) and momentum_form == "rate_outside"
    inner: list[optax.GradientTransformation] = [coupled_weight_decay(coupled, decayed(roles))]
    if outside:
        inner.append(rate_outside_momentum(momentum, nesterov=nesterov))
    trust = scale_by_trust_ratio(
        optax.chain(*inner),
        scaled(roles),
        coefficient=trust_coefficient,
        # `inner` cannot be looked into: that it decays has to be said, for ||g|| + beta ||w||.
        weight_decay=coupled,
        epsilon=trust_epsilon,
        at_zero=trust_at_zero,
    )
    # What is left is SGD of scaled gradients; momentum that stands before the ratio is done.
    rest = sgd(
        learning_rate,
        roles,
        momentum=0.0 if outside else momentum,
        nesterov=nesterov,
        momentum_form=momentum_form,
        momentum_correction=momentum_correction,
        # All of it, or exactly 0 where it was coupled: it is never taken twice.
        weight_decay=weight_decay - coupled,
        weight_decay_form="decoupled",
    )
    return optax.chain(trust, rest)


def lamb(
    learning_rate: Schedule,
    roles: Any,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    norm_clip: tuple[float, ...] = (),
) -> optax.GradientTransformationExtraArgs:
    """Makes LAMB (You et al. 2020): Adam's direction and decay, times each kernel's trust ratio.

    The decay is decoupled from the moments, and within the trust ratio. For the arguments see
    `layerwise.scale_by_lamb`.
    """
    direction = scale_by_lamb(
        scaled(roles),
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        norm_clip=norm_clip,
    )
    return optax.chain(direction, scale_by_negative_rate(learning_rate))


_OF_SGD = (
    "momentum",
    "nesterov",
    "momentum_form",
    "momentum_correction",
    "weight_decay",
    "weight_decay_form",
)
_OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "sgd": (sgd, _OF_SGD),
    "lars": (lars, (*_OF_SGD, "trust_coefficient", "trust_epsilon", "trust_at_zero")),
    "lamb": (lamb, ("beta1", "beta2", "epsilon", "weight_decay", "norm_clip")),
}


def _check_lamb(keys: Mapping[str, Any]) -> None:
    clip, epsilon = keys["norm_clip"], keys["epsilon"]
    # With 0 for the greatest norm no kernel would ever move.
    if clip and not (len(clip) == 2 and clip[0] <= clip[1] and clip[1] > 0):
        raise ConfigError(f"optimizer.norm_clip must be () or (least, greatest), not {clip}")
    if epsilon < LEAST_EPSILON:
        raise ConfigError(f"optimizer.epsilon must be at least {LEAST_EPSILON:g}, not {epsilon}")


class Rule(NamedTuple):
    """Interim."""

    transform: Any
    numbers: Any


def build_optimizer(learning_rate: Schedule, roles: Any, *, name: str, **keys: Any) -> Rule:
    """Builds `sgd`, `lars` or `lamb`.

    Args:
      learning_rate, roles: as in `sgd`.
      name: which.
      keys: the arguments of all of them; each takes its own.

    Raises:
      KeyError: no such optimizer, or an argument of it is missing.
      ConfigError: a value that the optimizer cannot take.
    """
    if name == "lamb":
        _check_lamb(keys)
    # A config has the keys of all optimizers, so that one can be exchanged for another by name.
    make, own = _OPTIMIZERS[name]
    return Rule(make(learning_rate, roles, **{key: keys[key] for key in own}), {})
