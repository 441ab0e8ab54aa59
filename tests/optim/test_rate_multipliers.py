"""A multiplier of a parameter's rate: the optimizer at that many times the rate, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layerwise_by_hand import EPS, RATES, ROLES, gradient_of, problem, schedule

from lbsgd.config.dotted import load
from lbsgd.optim.chain import lamb_rule, lars_rule, sgd_rule, with_multipliers
from lbsgd.optim.rule import Rule, counted
from lbsgd.optim.stock import rule_of

MULTIPLIERS = {"conv": 0.1, "dense": 10.0, "bias": 1.0, "scale": 3.0, "offset": 0.5}
# Past the jump of the rate, for momentum correction.
UPDATES = 50
SGD = {
    "momentum": 0.9,
    "nesterov": True,
    "momentum_form": "rate_outside",
    "momentum_correction": True,
    "weight_decay": 0.01,
    "decayed_roles": ("kernel", "bias"),
    "weight_decay_form": "coupled",
}
INSIDE = {**SGD, "momentum_form": "rate_inside"}
UNCORRECTED = {**INSIDE, "momentum_correction": False}
DECOUPLED = {**SGD, "weight_decay_form": "decoupled"}
LARS = {"trust_coefficient": 0.001, "trust_epsilon": 1e-9, "trust_at_zero": "one"}
LAMB = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.01, "norm_clip": ()}


def of_others(name: str, rate, roles) -> Rule:
    decay = {"weight_decay": 0.01, "decayed_roles": ("kernel",), "weight_decay_form": "decoupled"}
    return rule_of(rate, roles, named=load("optimizer.name", name), options={}, **decay)


OPTIMIZERS = {
    "sgd": lambda *given: sgd_rule(*given, **SGD),
    "without momentum": lambda *given: sgd_rule(*given, **{**SGD, "momentum": 0.0}),
    "inside": lambda *given: sgd_rule(*given, **INSIDE),
    "uncorrected": lambda *given: sgd_rule(*given, **UNCORRECTED),
    "decoupled": lambda *given: sgd_rule(*given, **DECOUPLED),
    "lars": lambda *given: lars_rule(*given, **UNCORRECTED, **LARS),
    "lars outside": lambda *given: lars_rule(*given, **SGD, **LARS),
    "lamb": lambda *given: lamb_rule(*given, **LAMB),
    "adamw": lambda *given: of_others("optax:adamw", *given),
    "a direction": lambda *given: of_others("optax:scale_by_adam", *given),
}

# Of each form that the rate comes in by; the others are as one of these but for a term.
SHORT = ("sgd", "inside", "lars", "lamb", "adamw")


def trained(rule: Rule, start, noise):
    """The parameters after each update; to be compiled."""
    optimizer = counted(rule)

    def one(carry, noise):
        params, state = carry
        gradients = jax.tree.map(gradient_of, params, noise)
        changes, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, changes)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, start)
    noise = {name: jnp.asarray(x[:UPDATES]) for name, x in noise.items()}
    return jax.lax.scan(one, (params, optimizer.init(params)), noise)[1]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long) for name in OPTIMIZERS],
)
def test_it_is_the_optimizer_at_that_many_times_the_rate(x64, name):
    """Of each array, for none of these optimizers looks from one array at another."""
    make, (start, noise) = OPTIMIZERS[name], problem()

    @jax.jit
    def at_each_rate(mu):
        return jax.vmap(lambda mu: trained(make(lambda t: mu * schedule(t), ROLES), start, noise))(
            mu
        )

    multiplied = with_multipliers(make(schedule, ROLES), MULTIPLIERS)
    found = jax.jit(lambda: trained(multiplied, start, noise))()
    at_rates = at_each_rate(jnp.array(list(MULTIPLIERS.values())))
    for i, key in enumerate(MULTIPLIERS):
        expected = at_rates[key][i]
        # Some ten roundings an update, carried on by momentum, of which ten updates are summed.
        atol = 10 * UPDATES * EPS * 10 * np.abs(expected).max()
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=atol, err_msg=key)


def test_the_rate_inside_the_buffer_by_hand(x64):
    """v <- m c v + mu eta (g + lambda w) with c the ratio of rates; w <- w - (mu eta g + m v)."""
    start, noise = problem()
    rule = with_multipliers(sgd_rule(schedule, ROLES, **INSIDE), MULTIPLIERS)
    found = jax.jit(lambda: trained(rule, start, noise))()
    for key, mu in MULTIPLIERS.items():
        w, v = start[key], 0.0
        for t in range(UPDATES):
            g = gradient_of(w, noise[key][t])
            g = g + 0.01 * w * (key in ("conv", "dense", "bias"))
            ratio = RATES[t] / RATES[t - 1] if t else 1.0
            v = 0.9 * ratio * v + mu * RATES[t] * g
            w = w - (mu * RATES[t] * g + 0.9 * v)
            atol = 10 * (t + 1) * EPS * 10 * max(np.abs(w).max(), np.abs(start[key]).max())
            np.testing.assert_allclose(found[key][t], w, rtol=0, atol=atol, err_msg=key)


def test_without_multipliers_the_transform_is_the_same():
    rule = sgd_rule(0.1, ROLES, **SGD)
    assert with_multipliers(rule, dict.fromkeys(ROLES, 1.0)) is rule
