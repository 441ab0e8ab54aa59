"""Puts the optimizers together from the transforms of this package, as rules.

For the arguments see `lbsgd.optim.library`, whose functions make optax transformations of them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax
from jaxtyping import PyTree

from lbsgd.config.dotted import is_dotted, load
from lbsgd.optim.layerwise import scale_by_lamb, scale_by_trust_ratio
from lbsgd.optim.masks import Roles, decayed, scaled
from lbsgd.optim.momentum import rate_inside_momentum, rate_outside_momentum
from lbsgd.optim.rate import multiply_changes, negate, scale_by_negative_rate
from lbsgd.optim.rescaling import rescale_kernels
from lbsgd.optim.rule import Number, Rule, in_proportion, is_on, last
from lbsgd.optim.stock import rule_of
from lbsgd.optim.weight_decay import coupled_weight_decay, decoupled_weight_decay
from lbsgd.schedule.functions import Schedule
from lbsgd.system.errors import ConfigError

MOMENTUM_FORMS = ("rate_outside", "rate_inside")
WEIGHT_DECAY_FORMS = ("coupled", "decoupled")
TRUST_AT_ZERO = ("one", "formula")
WEIGHT_RESCALINGS = ("none", "always", "larger")
MOMENTUM_SCHEDULES = ("constant", "with_rate")
# Less is 0 in float32, and LAMB's 0 / (0 + epsilon) not a number.
LEAST_EPSILON = 1e-30


def sgd_rule(
    learning_rate: Number,
    roles: Roles,
    *,
    momentum: Number,
    nesterov: bool,
    momentum_form: str,
    momentum_correction: bool,
    weight_decay: Number,
    decayed_roles: Sequence[str],
    weight_decay_form: str,
) -> Rule:
    """Makes minibatch SGD: decay, momentum and rate, in the order chosen.

    Raises:
      ValueError: there is no such form.
    """
    _check_forms(momentum_form, weight_decay_form)
    inside = is_on(momentum) and momentum_form == "rate_inside"
    steps: list[optax.GradientTransformation] = []
    # Coupled decay is part of the gradient that momentum averages, decoupled decay is past it.
    if is_on(weight_decay) and weight_decay_form == "coupled":
        steps.append(coupled_weight_decay(decayed(roles, decayed_roles)))
    # Without momentum there is no buffer, which takes as much memory as the parameters.
    if is_on(momentum) and not inside:
        steps.append(rate_outside_momentum(nesterov=nesterov))
    steps += _scale_by_rate(inside=inside, nesterov=nesterov, correction=momentum_correction)
    if is_on(weight_decay) and weight_decay_form == "decoupled":
        steps.append(decoupled_weight_decay(decayed(roles, decayed_roles)))
    numbers = _numbers(learning_rate, momentum=momentum, weight_decay=weight_decay)
    return Rule(optax.chain(*steps), numbers | _last(learning_rate, inside and momentum_correction))


def lars_rule(
    learning_rate: Number,
    roles: Roles,
    *,
    momentum: Number,
    nesterov: bool,
    momentum_form: str,
    momentum_correction: bool,
    weight_decay: Number,
    decayed_roles: Sequence[str],
    weight_decay_form: str,
    trust_coefficient: Number,
    trust_epsilon: Number,
    trust_at_zero: str,
) -> Rule:
    """Makes LARS: SGD whose kernels have a trust ratio each.

    Raises:
      ValueError: there is no such form.
    """
    _check_forms(momentum_form, weight_decay_form)
    _check_choice("trust_at_zero", trust_at_zero, TRUST_AT_ZERO)
    inside = is_on(momentum) and momentum_form == "rate_inside"
    # The paper's formula has decay in the ratio only where it is part of the gradient.
    coupled = is_on(weight_decay) and weight_decay_form == "coupled"
    inner: list[optax.GradientTransformation] = []
    if coupled:
        inner.append(coupled_weight_decay(decayed(roles, decayed_roles)))
    if is_on(momentum) and not inside:
        inner.append(rate_outside_momentum(nesterov=nesterov))
    trust = scale_by_trust_ratio(
        optax.chain(*(inner or [optax.identity()])),
        scaled(roles),
        # `inner` cannot be looked into: that it decays has to be said, for ||g|| + beta ||w||.
        decay=coupled,
        at_zero=trust_at_zero,
    )
    # What is left is SGD of scaled gradients; momentum that stands before the ratio is done.
    steps = [trust, *_scale_by_rate(inside, nesterov=nesterov, correction=momentum_correction)]
    if is_on(weight_decay) and not coupled:
        steps.append(decoupled_weight_decay(decayed(roles, decayed_roles)))
    numbers = _numbers(
        learning_rate, momentum=momentum, weight_decay=weight_decay, trust_epsilon=trust_epsilon
    )
    numbers |= {"trust_coefficient": trust_coefficient}
    return Rule(optax.chain(*steps), numbers | _last(learning_rate, inside and momentum_correction))


def lamb_rule(
    learning_rate: Number,
    roles: Roles,
    *,
    beta1: Any,
    beta2: Any,
    epsilon: Any,
    weight_decay: Number,
    norm_clip: tuple[Any, ...],
) -> Rule:
    """Makes LAMB: Adam's direction and decay, times each kernel's trust ratio.

    Raises:
      ConfigError: epsilon is too small, or norm_clip not a least and a greatest norm.
    """
    _check_lamb(norm_clip, epsilon)
    direction = scale_by_lamb(scaled(roles), decay=is_on(weight_decay), norm_clip=bool(norm_clip))
    numbers = _numbers(learning_rate, weight_decay=weight_decay)
    numbers |= {"one_minus_beta1": 1.0 - beta1, "one_minus_beta2": 1.0 - beta2, "epsilon": epsilon}
    numbers |= dict(zip(("least_norm", "greatest_norm"), norm_clip))
    return Rule(optax.chain(direction, scale_by_negative_rate()), numbers)


def spngd_rule(
    learning_rate: Number,
    roles: Roles,
    *,
    damping: Number,
    norm_damping: Number,
    momentum: Number,
    momentum_schedule: str,
    nesterov: bool,
    momentum_form: str,
    momentum_correction: bool,
    weight_decay: Number,
    decayed_roles: Sequence[str],
    weight_rescaling: str,
) -> Rule:
    """Makes what SP-NGD does with natural gradients: SGD, whose kernels may be held to a norm.

    Raises:
      ValueError: there is no such form.
    """
    _check_choice("weight_rescaling", weight_rescaling, WEIGHT_RESCALINGS)
    _check_choice("momentum_schedule", momentum_schedule, MOMENTUM_SCHEDULES)
    if momentum_schedule == "with_rate":
        momentum = in_proportion(momentum, learning_rate)
    sgd = sgd_rule(
        learning_rate,
        roles,
        momentum=momentum,
        nesterov=nesterov,
        momentum_form=momentum_form,
        momentum_correction=momentum_correction,
        weight_decay=weight_decay,
        decayed_roles=decayed_roles,
        # Decay that is part of the gradient would have to be preconditioned with it.
        weight_decay_form="decoupled",
    )
    steps = [sgd.transform]
    if weight_rescaling != "none":
        steps.append(rescale_kernels(scaled(roles), shrink_only=weight_rescaling == "larger"))
    numbers = {**sgd.numbers, "damping": damping, "norm_damping": norm_damping}
    return Rule(optax.chain(*steps), numbers)


def _scale_by_rate(
    inside: bool, *, nesterov: bool, correction: bool
) -> list[optax.GradientTransformation]:
    """Lists what brings the rate in: momentum with the rate inside, or the rate alone."""
    if not inside:
        return [scale_by_negative_rate()]
    # The rate is in the buffer already: scaling by it again would square it.
    return [rate_inside_momentum(nesterov=nesterov, correction=correction), negate()]


def _numbers(learning_rate: Number, **optional: Number) -> dict[str, Number]:
    """Collects the numbers by keyword; those that are off have no term that takes them."""
    return {"learning_rate": learning_rate} | {k: v for k, v in optional.items() if is_on(v)}


def _last(learning_rate: Number, corrected: bool) -> dict[str, Number]:
    return {"last_learning_rate": last(learning_rate)} if corrected else {}


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(choices)}")


def _check_forms(momentum_form: str, weight_decay_form: str) -> None:
    _check_choice("momentum_form", momentum_form, MOMENTUM_FORMS)
    _check_choice("weight_decay_form", weight_decay_form, WEIGHT_DECAY_FORMS)


def _check_lamb(clip: tuple[Any, ...], epsilon: Any) -> None:
    # With 0 for the greatest norm no kernel would ever move.
    if clip and not (len(clip) == 2 and clip[0] <= clip[1] and clip[1] > 0):
        raise ConfigError(f"optimizer.norm_clip must be () or (least, greatest), not {clip}")
    # Of an array, which `optax.inject_hyperparams` hands over, it may not be known.
    if isinstance(epsilon, int | float) and epsilon < LEAST_EPSILON:
        raise ConfigError(f"optimizer.epsilon must be at least {LEAST_EPSILON:g}, not {epsilon}")


def with_multipliers(rule: Rule, multipliers: PyTree[float]) -> Rule:
    """Multiplies the rate of each parameter by a constant of its own.

    Args:
      multipliers: like the parameters.
    """
    if all(number == 1 for number in jax.tree.leaves(multipliers)):
        return rule
    return Rule(optax.chain(rule.transform, multiply_changes(multipliers)), rule.numbers)


_RULES: Mapping[str, Callable[..., Rule]] = {
    "sgd": sgd_rule,
    "lars": lars_rule,
    "lamb": lamb_rule,
    "spngd": spngd_rule,
}


def build_optimizer(learning_rate: Schedule, roles: Any, *, name: str, **keys: Any) -> Rule:
    """Builds the optimizer of a run: `sgd`, `lars`, `lamb`, or a dotted name's.

    Args:
      learning_rate: schedule of the rate.
      roles: like the parameters; decides what decays and has a trust ratio.
      name: which; "package.module:name" for another's transformation.
      keys: the config's `optimizer`, the keys of all of them; each takes its own.

    Raises:
      KeyError: no such optimizer, or an argument of it is missing.
      ConfigError: a value that the optimizer cannot take, or a mistake in what a dotted name names.
    """
    if is_dotted(name):
        return rule_of(
            learning_rate,
            roles,
            named=load("optimizer.name", name),
            options=ml_collections.ConfigDict(keys["options"]).to_dict(),
            weight_decay=keys["weight_decay"],
            decayed_roles=keys["decayed_roles"],
            weight_decay_form=keys["weight_decay_form"],
        )
    # A config has the keys of all optimizers, so that one can be exchanged for another by name.
    make = _RULES[name]
    _, _, *own = inspect.signature(make).parameters
    return make(learning_rate, roles, **{key: keys[key] for key in own})
