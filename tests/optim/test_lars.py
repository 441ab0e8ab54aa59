"""LARS in both of its forms, against its formulas in numpy, timm and optax."""

import functools

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
    UPDATES,
    assert_alike,
    by_hand,
    furthest,
    gradient_of,
    lars_by_hand,
    problem,
    schedule,
    timm_optimizer,
    train,
    train_in_torch,
)

from lbsgd.models.roles import Role
from lbsgd.optim import lars
from lbsgd.optim.layerwise import norm

FORMS = {"scaled": "rate_inside", "unscaled": "rate_outside"}
ETA = 0.01


def ours(form="scaled", rate=schedule, **options):
    return lars(rate, roles=ROLES, momentum_form=FORMS[form], trust_coefficient=ETA, **options)


# --- the formulas ----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [(0.0, "coupled"), (0.05, "coupled"), (0.05, "decoupled")])
@pytest.mark.parametrize(
    ("form", "correction", "momentum", "nesterov"),
    [
        ("scaled", True, 0.0, False),
        *[("scaled", correction, 0.9, n) for correction in (False, True) for n in (False, True)],
        ("unscaled", False, 0.9, False),
        ("unscaled", False, 0.9, True),
    ],
)
def test_lars_is_its_formulas(x64, form, correction, decay, momentum, nesterov):
    found, _ = train(
        ours(
            form,
            momentum=momentum,
            nesterov=nesterov,
            momentum_correction=correction,
            weight_decay=decay[0],
            weight_decay_form=decay[1],
            trust_epsilon=1e-3,
        ),
        problem(),
    )
    expected = by_hand(
        lars_by_hand,
        problem(),
        form=form,
        m=momentum,
        nesterov=nesterov,
        correction=correction,
        beta=decay[0],
        decoupled=decay[1] == "decoupled",
        eta=ETA,
        eps=1e-3,
    )
    assert_alike(found, expected)


def test_the_paper_s_is_the_default(x64):
    found, _ = train(lars(schedule, roles=ROLES, momentum=0.9, weight_decay=0.05), problem())
    assert_alike(found, by_hand(lars_by_hand, problem(), beta=0.05, eta=0.001))


def ratios_of(state) -> dict[str, np.ndarray]:
    return jax.device_get(optax.tree.get(state, "trust_ratios"))


@pytest.mark.parametrize("form", FORMS)
def test_the_state_holds_the_last_trust_ratios(x64, form):
    trial = problem()
    history, state = train(ours(form, weight_decay=0.05, trust_epsilon=0.1), trial)
    found = ratios_of(state)
    for name in ROLES:
        w = history[name][-2]
        g = gradient_of(w, trial.noise[name][-1])
        below = np.linalg.norm(g) + 0.05 * np.linalg.norm(w) + 0.1
        expected = ETA * np.linalg.norm(w) / below if name in KERNELS else 1.0
        assert found[name].shape == ()
        np.testing.assert_allclose(found[name], expected, rtol=20 * EPS, err_msg=name)
    assert all(ratio == 1 for ratio in ratios_of(ours(form).init(trial.start)).values())


# --- the two forms ---------------------------------------------------------------------------


def without_noise():
    """g = 0.01 w, so that |g| / |w| and the trust ratio stay the same, whatever w becomes."""
    trial = problem()
    return trial._replace(noise=jax.tree.map(np.zeros_like, trial.noise))


@pytest.mark.parametrize("nesterov", [False, True])
def test_scaled_and_corrected_is_unscaled_where_trust_is_constant(x64, nesterov):
    """Where it is eta / (0.01 + beta)."""
    trial = without_noise()
    options = {"nesterov": nesterov, "weight_decay": 0.05}
    scaled, state = train(ours("scaled", momentum_correction=True, **options), trial)
    unscaled, _ = train(ours("unscaled", **options), trial)
    for name in KERNELS:
        np.testing.assert_allclose(ratios_of(state)[name], ETA / 0.06, rtol=100 * EPS)
    assert_alike(scaled, unscaled, size=1.0)
    uncorrected, _ = train(ours("scaled", momentum_correction=False, **options), trial)
    assert furthest(uncorrected, unscaled) > 1e-3


def test_scaled_and_corrected_is_not_unscaled_where_trust_changes(x64):
    """The correction is by the rates alone: old trust ratios stay in the buffer."""
    scaled, _ = train(ours("scaled", momentum_correction=True), problem())
    unscaled, _ = train(ours("unscaled"), problem())
    assert furthest({k: scaled[k] for k in KERNELS}, unscaled) > 1e-3
    # Which have no trust ratio.
    others = [name for name in ROLES if name not in KERNELS]
    assert_alike({k: scaled[k] for k in others}, {k: unscaled[k] for k in others})


# --- norms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 1.0, 1e10, 1e20, 1e30])
def test_the_step_has_norm_rate_trust_norm_of_w(form, scale):
    """In float32, for any scaling of the gradient: |change| = gamma eta |w|."""
    random = np.random.default_rng(0)
    w = {"kernel": random.normal(size=(64, 32)).astype(np.float32)}
    g = {"kernel": (random.normal(size=(64, 32)) * scale).astype(np.float32)}
    optimizer = lars(
        lambda t: jnp.float32(3.0),
        roles={"kernel": Role.KERNEL},
        momentum_form=FORMS[form],
        trust_coefficient=0.001,
    )
    changes, _ = optimizer.update(g, optimizer.init(w), w, update_index=0)
    expected = 3.0 * 0.001 * np.linalg.norm(w["kernel"].astype(np.float64))
    found = np.linalg.norm(np.asarray(changes["kernel"], np.float64))
    # Two norms of 2048 numbers, summed in float32: at worst 2048 roundings each.
    np.testing.assert_allclose(found, expected, rtol=2 * 2048 * 6e-8)
    assert (np.sign(changes["kernel"]) == -np.sign(g["kernel"])).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 6e4])
def test_norms_are_of_float32_at_least(dtype, size):
    """Of 10,000 numbers, whose squares and sum are past float16."""
    x = jnp.full((100, 100), size, dtype)
    found = norm(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 100 * float(x[0, 0]), rtol=1e4 * 6e-8)


def test_norms_of_nothing_zeros_and_what_is_not_finite():
    assert norm(jnp.zeros((0, 3))) == 0
    assert norm(jnp.zeros((2, 3))) == 0
    assert norm(jnp.asarray([3.0, -4.0])) == 5
    assert not np.isfinite(norm(jnp.asarray([1.0, np.inf])))
    assert np.isnan(norm(jnp.asarray([1.0, np.nan])))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zero", ["w", "g", "both"])
def test_where_a_norm_is_zero_the_ratio_is_one(x64, form, zero):
    """So that a kernel of zeros can leave them, at the bare rate."""
    w = {"kernel": np.full((2, 2), 0.0 if zero in ("w", "both") else 2.0)}
    g = {"kernel": np.full((2, 2), 0.0 if zero in ("g", "both") else 3.0)}
    optimizer = lars(
        lambda t: jnp.asarray(0.5),
        roles={"kernel": Role.KERNEL},
        momentum_form=FORMS[form],
        weight_decay=0.1,
    )
    changes, state = optimizer.update(g, optimizer.init(w), w, update_index=0)
    expected = -0.5 * (g["kernel"] + 0.1 * w["kernel"])
    np.testing.assert_allclose(changes["kernel"], expected, rtol=4 * EPS)
    assert ratios_of(state)["kernel"] == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("of_w", "of_g", "decay", "epsilon", "expected"),
    [
        (2.0, 0.0, 5e-4, 0.0, 0.001 / 5e-4),  # eta / beta
        (2.0, 0.0, 0.1, 0.5, 0.001 * 4 / (0.1 * 4 + 0.5)),
        (2.0, 0.0, 0.0, 0.5, 0.001 * 4 / 0.5),
        (0.0, 3.0, 0.1, 0.0, 0.0),
        (0.0, 3.0, 0.0, 0.0, 0.0),
        (2.0, 3.0, 0.1, 0.0, 0.001 * 4 / (6 + 0.1 * 4)),
        # It would divide by 0, where what it is of is 0 itself.
        (2.0, 0.0, 0.0, 0.0, 1.0),
        (0.0, 0.0, 0.1, 0.0, 1.0),
    ],
)
def test_the_formula_where_a_norm_is_zero(x64, form, of_w, of_g, decay, epsilon, expected):
    """The paper's, literally: eta |w| / (|g| + beta |w|); arrays of 2x2, so norms are double."""
    w, g = {"kernel": np.full((2, 2), of_w)}, {"kernel": np.full((2, 2), of_g)}
    optimizer = lars(
        lambda t: jnp.asarray(0.5),
        roles={"kernel": Role.KERNEL},
        momentum_form=FORMS[form],
        weight_decay=decay,
        trust_epsilon=epsilon,
        trust_at_zero="formula",
    )
    changes, state = optimizer.update(g, optimizer.init(w), w, update_index=0)
    np.testing.assert_allclose(ratios_of(state)["kernel"], expected, rtol=8 * EPS)
    direction = g["kernel"] + decay * w["kernel"]
    np.testing.assert_allclose(changes["kernel"], -0.5 * expected * direction, rtol=8 * EPS)


def test_the_formula_changes_nothing_else(x64):
    """Nor may what is not finite pass for a norm of 0."""
    options = {"weight_decay": 0.05, "trust_at_zero": "formula"}
    found, _ = train(ours(**options), problem())
    assert_alike(found, by_hand(lars_by_hand, problem(), beta=0.05, eta=ETA))
    w, g = {"kernel": np.ones((2, 2))}, {"kernel": np.full((2, 2), np.nan)}
    optimizer = lars(schedule, roles={"kernel": Role.KERNEL}, **options)
    changes, _ = optimizer.update(g, optimizer.init(w), w, update_index=0)
    assert np.isnan(changes["kernel"]).all()


# --- timm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.long), 0.05])
def test_scaled_and_corrected_is_timm_s(x64, monkeypatch, nesterov, decay):
    """Whose trust is inside the buffer and rate outside; eps of its own; no decay, no trust."""
    timm = timm_optimizer("lars", monkeypatch)
    options = {"momentum": 0.9, "nesterov": nesterov}
    theirs = train_in_torch(timm.Lars, problem(), decay, trust_coeff=ETA, eps=1e-8, **options)
    always = train_in_torch(
        functools.partial(timm.Lars, always_adapt=True),
        problem(),
        decay,
        trust_coeff=ETA,
        **options,
    )
    options |= {"weight_decay": decay, "trust_epsilon": 1e-8}
    found, _ = train(ours("scaled", momentum_correction=True, **options), problem())
    kernels = {name: found[name] for name in KERNELS}
    if decay:
        assert_alike(found, theirs)
    else:
        assert furthest(kernels, theirs) > 1e-3
        assert_alike(kernels, {name: always[name] for name in KERNELS})
    others = {name: found[name] for name in ROLES if name not in KERNELS}
    assert furthest(others, always) > 1e-3  # it gives biases a trust ratio, too
    uncorrected, _ = train(ours("scaled", momentum_correction=False, **options), problem())
    unscaled, _ = train(ours("unscaled", **options), problem())
    assert furthest(uncorrected, theirs) > 1e-3
    assert furthest(unscaled, theirs) > 1e-3


# --- optax -----------------------------------------------------------------------------------


def in_optax(trial, **options) -> dict[str, np.ndarray]:
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.lars(schedule, trust_coefficient=ETA, **options)
        return train(optax.with_extra_args_support(optimizer), trial)[0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_optax_differs_by_the_norm_below_and_the_parameters(x64, nesterov):
    """|g + beta w| is |g| + beta |w| where there is no decay, and where g is along w."""
    kernels = {name: name in KERNELS for name in ROLES}
    masks = {"weight_decay_mask": kernels, "trust_ratio_mask": kernels}
    for trial, decay in ((problem(), 0.0), (without_noise(), 0.05)):
        options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": decay}
        found, _ = train(ours("scaled", **options), trial)
        assert_alike(found, in_optax(trial, **options, **masks), size=1.0)
    # By default biases and norm parameters have a trust ratio there.
    found, everywhere = train(ours("scaled"), problem())[0], in_optax(problem())
    assert all(furthest({n: found[n]}, everywhere) > 1e-3 for n in ROLES if n not in KERNELS)
    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.05}
    found, _ = train(ours("scaled", **options), problem())
    theirs = in_optax(problem(), **options, **masks)
    assert all(furthest({name: found[name]}, theirs) > 1e-3 for name in KERNELS)


def test_the_rates_tell_all_of_this_apart():
    assert len(RATES) == UPDATES
    assert (np.diff(RATES) != 0).all()
