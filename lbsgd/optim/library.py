"""Gives anyone's training loop the optimizers, as ordinary optax transformations.

They work in a Flax TrainState, `optax.chain`, `optax.MultiSteps`, `optax.masked`,
`optax.inject_hyperparams`, under jit and vmap. Each counts its updates from 0, and evaluates its
schedules there; an update that is given the keyword `update_index` is that one instead.

Which parameters decay, and have a trust ratio, is decided by their roles: kernels do. Without
`roles` these are guessed by names and rank, see `lbsgd.models.roles.roles_by_name`.
"""

from collections.abc import Sequence

import optax
from jax.typing import ArrayLike

from lbsgd.optim.chain import lamb_rule, lars_rule, sgd_rule
from lbsgd.optim.masks import Roles
from lbsgd.optim.natural import scale_by_natural_gradient
from lbsgd.optim.rule import Number, counted

__all__ = ["lamb", "lars", "scale_by_natural_gradient", "sgd"]


def sgd(
    learning_rate: Number,
    *,
    roles: Roles = None,
    momentum: Number = 0.9,
    nesterov: bool = False,
    momentum_form: str = "rate_outside",
    momentum_correction: bool = True,
    weight_decay: Number = 0.0,
    decayed_roles: Sequence[str] = ("kernel",),
    weight_decay_form: str = "coupled",
) -> optax.GradientTransformationExtraArgs:
    """Makes minibatch SGD as in Goyal et al. 2017: decay, momentum and rate, in the order chosen.

    >>> import jax.numpy as jnp, optax
    >>> from lbsgd.optim import sgd
    >>> params = {"dense": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
    >>> gradient = {"dense": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}}
    >>> tx = sgd(0.5, momentum_form="rate_inside", weight_decay=0.1)
    >>> changes, state = tx.update(gradient, tx.init(params), params)
    >>> params = optax.apply_updates(params, changes)
    >>> float(params["dense"]["kernel"][0, 0]), float(params["dense"]["bias"][0])  # no decay of it
    (0.949..., 1.0)

    Args:
      learning_rate: the rate, or an optax schedule of it.
      roles: a tree of `lbsgd.models.roles.Role` like the parameters, or a function that makes it of
        them; decides what decays. By names and rank if left out.
      momentum: m, or a schedule of it; 0 for none.
      nesterov: Nesterov's momentum.
      momentum_form: "rate_outside", equation (9), or "rate_inside", equation (10).
      momentum_correction: of form (10), by the ratio of the rates; form (9) needs none.
      weight_decay: lambda.
      decayed_roles: the roles of what decays.
      weight_decay_form: "coupled" (L2, the paper's) or "decoupled".

    Raises:
      ValueError: there is no such form or role; or the rate is to be corrected for and is an array.
    """
    rule = sgd_rule(
        learning_rate,
        roles,
        momentum=momentum,
        nesterov=nesterov,
        momentum_form=momentum_form,
        momentum_correction=momentum_correction,
        weight_decay=weight_decay,
        decayed_roles=decayed_roles,
        weight_decay_form=weight_decay_form,
    )
    return counted(rule)


def lars(
    learning_rate: Number,
    *,
    roles: Roles = None,
    momentum: Number = 0.9,
    nesterov: bool = False,
    momentum_form: str = "rate_inside",
    momentum_correction: bool = False,
    weight_decay: Number = 0.0,
    decayed_roles: Sequence[str] = ("kernel",),
    weight_decay_form: str = "coupled",
    trust_coefficient: Number = 0.001,
    trust_epsilon: Number = 0.0,
    trust_at_zero: str = "one",
) -> optax.GradientTransformationExtraArgs:
    """Makes LARS (You, Gitman and Ginsburg 2017): SGD whose kernels have a trust ratio each.

    >>> import jax, jax.numpy as jnp, optax
    >>> from flax import linen as nn
    >>> from flax.training.train_state import TrainState
    >>> from lbsgd.optim import lars
    >>> model, params = nn.Dense(3), {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)}
    >>> schedule = optax.polynomial_schedule(2.0, 0.0, power=2, transition_steps=100)
    >>> tx = lars(schedule, weight_decay=5e-5)
    >>> state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    >>> gradient = jax.grad(lambda p: state.apply_fn({"params": p}, jnp.ones((8, 5))).mean())
    >>> state = state.apply_gradients(grads=gradient(state.params))
    >>> optax.tree.get(state.opt_state, "trust_ratios")["bias"]  # kernels alone have one
    Array(1., dtype=float32)

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
        other arguments are those of `sgd`, and so is what is raised.
    """
    rule = lars_rule(
        learning_rate,
        roles,
        momentum=momentum,
        nesterov=nesterov,
        momentum_form=momentum_form,
        momentum_correction=momentum_correction,
        weight_decay=weight_decay,
        decayed_roles=decayed_roles,
        weight_decay_form=weight_decay_form,
        trust_coefficient=trust_coefficient,
        trust_epsilon=trust_epsilon,
        trust_at_zero=trust_at_zero,
    )
    return counted(rule)


def lamb(
    learning_rate: Number,
    *,
    roles: Roles = None,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.999,
    epsilon: ArrayLike = 1e-6,
    weight_decay: Number = 0.0,
    norm_clip: tuple[float, ...] = (),
) -> optax.GradientTransformationExtraArgs:
    """Makes LAMB (You et al. 2020): Adam's direction and decay, times each kernel's trust ratio.

    The decay is decoupled from the moments, and within the trust ratio.

    >>> import jax.numpy as jnp, optax
    >>> from lbsgd.optim import lamb
    >>> params = {"kernel": jnp.full((2, 2), 3.0)}
    >>> tx = optax.chain(optax.clip_by_global_norm(1.0), lamb(0.25))
    >>> changes, state = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)
    >>> float(jnp.linalg.norm(changes["kernel"]))  # the rate times the kernel's norm, 6
    1.5

    Args:
      learning_rate, roles: as in `sgd`; what decays has a trust ratio too.
      beta1, beta2: b1 and b2, by which the moments decay.
      epsilon: added to the root of the second moment.
      weight_decay: lambda.
      norm_clip: () for phi(z) = z, or (least, greatest) for phi(z) = min(max(z, least), greatest).

    Raises:
      ConfigError: a ValueError; epsilon is too small, norm_clip not such numbers, or a role none.
    """
    rule = lamb_rule(
        learning_rate,
        roles,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        norm_clip=norm_clip,
    )
    return counted(rule)
