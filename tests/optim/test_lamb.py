"""LAMB against its formulas in numpy, timm and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layerwise_by_hand import (
    EPS,
    KERNELS,
    RATES,
    ROLES,
    assert_alike,
    by_hand,
    furthest,
    lamb_by_hand,
    problem,
    timm_optimizer,
    train,
    train_in_torch,
)

from lbsgd.models.roles import Role
from lbsgd.optim import lamb
from lbsgd.optim.layerwise import scale_by_lamb

# Of the size that LAMB has them: a step is this part of a kernel's norm.
SCALE = 1 / 100


def schedule(update):
    return SCALE * jnp.asarray(RATES)[update]


@pytest.mark.parametrize(
    ("decay", "clip", "moments"),
    [
        (0.0, (), {}),
        (0.05, (), {}),
        (0.05, (0.0, 3.0), {}),
        (0.05, (5.0, 10.0), {"beta1": 0.5, "beta2": 0.9, "epsilon": 0.1}),
        (0.05, (), {"beta1": 0.0, "beta2": 0.0}),
    ],
)
def test_lamb_is_its_formulas(x64, decay, clip, moments):
    found, _ = train(
        lamb(schedule, roles=ROLES, weight_decay=decay, norm_clip=clip, **moments), problem()
    )
    names = {"beta1": "b1", "beta2": "b2", "epsilon": "eps"}
    expected = by_hand(
        lamb_by_hand,
        problem(),
        rates=SCALE * RATES,
        decay=decay,
        clip=clip,
        **{names[key]: value for key, value in moments.items()},
    )
    assert_alike(found, expected)


def test_the_step_of_a_kernel_has_norm_rate_phi_of_its_norm(x64):
    """Whatever the gradient was; and its ratio is what the state holds."""
    history, state = train(lamb(schedule, roles=ROLES, weight_decay=0.05), problem())
    ratios = jax.device_get(optax.tree.get(state, "trust_ratios"))
    for name in ROLES:
        before, after = history[name][-2:]
        step, rate = np.linalg.norm(after - before), SCALE * RATES[-1]
        if name in KERNELS:
            np.testing.assert_allclose(step, rate * np.linalg.norm(before), rtol=1e-12)
        else:
            assert ratios[name] == 1
        assert ratios[name].shape == ()
    assert ratios["conv"] != ratios["dense"]


def test_a_state_made_outside_of_jit_can_be_donated():
    """Mean and square start as equal numbers in arrays of their own."""
    transform = scale_by_lamb({"w": True})
    numbers = {"one_minus_beta1": 0.1, "one_minus_beta2": 0.001, "epsilon": 1e-6}
    params = {"w": jnp.ones((3, 2))}
    state = transform.init(params)

    def update(state, gradients):
        return transform.update(gradients, state, params, update_index=0, **numbers)[1]

    after = jax.jit(update, donate_argnums=0)(state, params)
    np.testing.assert_array_less(0, after.square["w"])


@pytest.mark.parametrize("update", [0, 1, 999, 9_999_999])
@pytest.mark.parametrize("integer", [int, jnp.int32])
def test_the_bias_correction_is_of_the_update_index(update, integer):
    """In float32: 1 - 0.999 is 0.001 to rounding."""
    w, g = jnp.ones(3), jnp.asarray([0.5, -2.0, 0.25])
    optimizer = lamb(lambda t: jnp.float32(1.0), roles={"bias": Role.BIAS})
    state = optimizer.init({"bias": w})
    t = integer(update)
    changes, state = optimizer.update({"bias": g}, state, {"bias": w}, update_index=t)
    b1, b2 = 1 - 0.9 ** (update + 1), 1 - 0.999 ** (update + 1)
    m, v = 0.1 * np.asarray(g, np.float64) / b1, 0.001 * np.asarray(g, np.float64) ** 2 / b2
    np.testing.assert_allclose(changes["bias"], -m / (np.sqrt(v) + 1e-6), rtol=20 * 6e-8)


@pytest.mark.parametrize("clip", [(), (0.5, 1.0)])
@pytest.mark.parametrize("zero", ["w", "g", "both"])
def test_where_a_norm_is_zero_the_ratio_is_one(x64, zero, clip):
    w = {"kernel": np.full((2, 2), 0.0 if zero in ("w", "both") else 2.0)}
    g = {"kernel": np.full((2, 2), 0.0 if zero in ("g", "both") else 3.0)}
    optimizer = lamb(lambda t: jnp.asarray(0.5), roles={"kernel": Role.KERNEL}, norm_clip=clip)
    changes, state = optimizer.update(g, optimizer.init(w), w, update_index=0)
    expected = -0.5 * g["kernel"] / (g["kernel"] + 1e-6)
    np.testing.assert_allclose(changes["kernel"], expected, rtol=20 * EPS)
    assert optax.tree.get(state, "trust_ratios")["kernel"] == 1


# --- others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lamb_is_timm_s(x64, monkeypatch, decay):
    """Where gradients are not clipped; without decay it gives kernels no trust ratio."""
    timm = timm_optimizer("lamb", monkeypatch)

    def make(groups, lr):
        return timm.Lamb(groups, lr, eps=1e-6, max_grad_norm=None)

    theirs = train_in_torch(make, problem(), decay, scale=SCALE)
    found, _ = train(lamb(schedule, roles=ROLES, weight_decay=decay), problem())
    if not decay:
        assert all(furthest({name: found[name]}, theirs) > 1e-3 for name in KERNELS)
        found, theirs = ({k: h[k] for k in ROLES if k not in KERNELS} for h in (found, theirs))
    assert_alike(found, theirs)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lamb_of_kernels_is_optax_s(x64, decay):
    """Which has a trust ratio for biases and norm parameters as well."""
    mask = {name: name in KERNELS for name in ROLES}
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.lamb(schedule, weight_decay=decay, mask=mask)
        expected, _ = train(optax.with_extra_args_support(theirs), problem())
    found, _ = train(lamb(schedule, roles=ROLES, weight_decay=decay), problem())
    assert_alike({k: found[k] for k in KERNELS}, {k: expected[k] for k in KERNELS})
    assert all(furthest({k: found[k]}, expected) > 1e-3 for k in ROLES if k not in KERNELS)
