"""The optimizer of a run, put together from the transforms of this package.

Every transform is an optax `GradientTransformationExtraArgs`. None counts updates: whoever calls
`update` says which update it is, `optimizer.update(gradient, state, params, update_index=t)`, so
that the update index of the run is the only counter there is.
"""

from typing import Any

import jax
import optax

from lbsgd.models.roles import Role
from lbsgd.optim.learning_rate import Schedule
from lbsgd.optim.momentum import rate_inside_momentum, rate_outside_momentum
from lbsgd.optim.weight_decay import coupled_weight_decay, decoupled_weight_decay

DECAYED_ROLES = frozenset({Role.KERNEL})


def decayed(roles: Any) -> Any:
    """Which parameters weight decay applies to: kernels, so neither norm parameters nor biases."""
    return jax.tree.map(lambda role: role in DECAYED_ROLES, roles)


def scale_by_negative_rate(learning_rate: Schedule) -> optax.GradientTransformationExtraArgs:
    """x <- -eta_t x: turns a direction into a change of the parameters."""

    def update(
        direction: Any,
        state: Any,
        params: Any = None,
        *,
        update_index: jax.typing.ArrayLike,
        **_: Any,
    ) -> tuple[Any, Any]:
        rate = learning_rate(update_index)
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, direction), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def negate() -> optax.GradientTransformationExtraArgs:
    """x <- -x."""

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
    """Minibatch SGD as in Goyal et al. 2017: decay, momentum and rate, in the order chosen.

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
    steps: list[optax.GradientTransformation] = []
    if weight_decay and weight_decay_form == "coupled":
        steps.append(coupled_weight_decay(weight_decay, decayed(roles)))
    if momentum and momentum_form == "rate_inside":
        steps.append(
            rate_inside_momentum(
                learning_rate, momentum, nesterov=nesterov, correction=momentum_correction
            )
        )
        steps.append(negate())
    else:
        if momentum:
            steps.append(rate_outside_momentum(momentum, nesterov=nesterov))
        steps.append(scale_by_negative_rate(learning_rate))
    if weight_decay and weight_decay_form == "decoupled":
        steps.append(decoupled_weight_decay(learning_rate, weight_decay, decayed(roles)))
    return optax.chain(*steps)
